"""The script that compares all methods runs, and writes what the pages are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_smoke(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--task", "digits-mlp", "--methods", "stn,stn-population,fixed", "--seeds", "1")
    run_script(
        "all_methods.py", "--smoke-test", *options, "--out", str(tmp_path), "--results", str(tmp_path / "results")
    )
    folder = tmp_path / "results" / "digits-mlp-smoke"
    assert set(pd.read_csv(folder / "summary.csv")["method"]) == {"stn", "stn-population", "fixed"}
    assert pd.read_csv(folder / "speed_up.csv")["baseline"].tolist() == ["fixed", "fixed"]
    assert pd.read_csv(folder / "population.csv")["n"].tolist() == [1, 1]
    assert (folder / "best_so_far_cost_total.png").exists()
    assert "stn-population" in capsys.readouterr().out
