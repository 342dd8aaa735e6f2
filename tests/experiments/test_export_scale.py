"""The script of export sizes runs, and every stage is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


def test_smoke(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("export_scale.py", "--smoke-test", "--results", str(tmp_path))
    stages = pd.read_csv(tmp_path / "stages.csv")
    assert list(stages["stage"]) == ["before", "end of the run", "tables", "load", "export parquet", "export csv"]
    assert (stages["reports"] == 200).all()
    assert (stages["seconds"][1:] > 0).all()
    assert stages["peak_mb"].is_monotonic_increasing
    assert stages["peak_mb"].between(10, 100_000).all()  # MB, on any system
    assert "to Parquet" in capsys.readouterr().out
