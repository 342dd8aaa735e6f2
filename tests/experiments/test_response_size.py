"""The study of response sizes runs, keeps what is finished, and pairs its differences by seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.usefixtures("one_thread")
def test_smoke(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("response_size.py", "--smoke-test", "--processes", "1", "--results", str(tmp_path))
    run_script(*arguments)
    runs = pd.read_csv(tmp_path / "runs.csv", dtype={"response": str})
    assert len(runs) == 16
    first = (tmp_path / "runs.csv").read_bytes()
    capsys.readouterr()
    run_script(*arguments)
    assert (tmp_path / "runs.csv").read_bytes() == first  # nothing is run twice

    summary = pd.read_csv(tmp_path / "summary.csv", dtype={"response": str})
    row = summary.set_index(["algorithm", "response", "share"]).sort_index().loc["delta-stn", "gate", 0.25]
    by_form = runs.set_index(["algorithm", "response", "share", "seed"])["best_val_loss"].sort_index()
    differences = by_form.loc["delta-stn", "gate", 0.25] - by_form.loc["delta-stn", "full", 1.0]
    assert row["best_val_loss_minus_full"] == pytest.approx(differences.mean())
