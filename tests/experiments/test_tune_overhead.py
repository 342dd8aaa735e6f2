"""The script of Tune's overhead runs, and compares like with like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_stn.tuning.cluster import Cluster


@pytest.mark.ray
def test_smoke(
    run_script: Callable[..., None], cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("tune_overhead.py", "--smoke-test", "--results", str(tmp_path))
    rows = pd.read_csv(tmp_path / "epochs.csv")
    epochs = rows[rows["epoch"] > 0].pivot(index="epoch", columns="side")
    assert list(epochs.index) == [1, 2, 3]
    losses, seconds = epochs["val_loss"], epochs["seconds"]
    assert losses["tune"].equals(losses["plain"])
    assert losses["tune"].equals(losses["alone"])
    assert losses["tune"].nunique() == 3  # it does train
    (summary,) = pd.read_csv(tmp_path / "summary.csv").to_dict("records")
    assert summary["over_plain"] == pytest.approx((seconds["tune"] / seconds["plain"] - 1)[[2, 3]].median())
    assert summary["tune_s"] == pytest.approx(seconds["tune"][[2, 3]].median())
    assert summary["start_of_the_run_s"] == pytest.approx(seconds["tune"][1] - seconds["plain"][1])
    assert "over_alone" in capsys.readouterr().out
