"""The script of refused commands runs, and says what each had loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


def test_one_of_them(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("refusals.py", "--only", "unknown task", "--results", str(tmp_path))
    (row,) = pd.read_csv(tmp_path / "refusals.csv").to_dict("records")
    assert row["code"] == 2
    assert row["line"].startswith("unknown task 'rigde'")
    assert 0 < row["cpu_s"] < 1
    assert pd.isna(row["loaded"])
    assert "unknown task" in capsys.readouterr().out
