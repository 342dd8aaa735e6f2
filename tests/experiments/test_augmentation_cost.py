"""The augmentation-cost script runs, and writes what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


def test_smoke(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(
        "augmentation_cost.py", "--smoke-test", "--threads", "1", "--batch-size", "8", "--results", str(tmp_path)
    )
    table = pd.read_csv(tmp_path / "cpu.csv").set_index("what")
    assert {"plain step", "all", "ColourJitter", "RandomAffine", "Mixup", "LabelSmoothing"} < set(table.index)
    assert table.loc["plain step", "percent_of_step"] == 100
    assert (table["milliseconds"] > 0).all()
    assert (table["quartile_1"] <= table["quartile_3"]).all()
    assert "percent_of_step" in capsys.readouterr().out
