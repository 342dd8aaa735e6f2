"""The script of load runs a large schedule through all stages; the short trials are those of a real study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.slow
def test_smoke(run_script: Callable[..., None], tmp_path: Path) -> None:
    run_script("load.py", "records", "--smoke-test", "--results", str(tmp_path))
    stages = pd.read_csv(tmp_path / "records.csv")
    assert list(stages["stage"][:4]) == ["before", "checkpoint", "end of the run", "tables"]
    assert list(stages["stage"][4:]) == [
        *("load", "report", "export parquet", "export csv", "schedule", "replay of all steps"),
    ]
    assert (stages[["hyperparameters", "records"]] == [5, 20]).all(axis=None)
    assert stages["peak_mb"].is_monotonic_increasing
    assert (stages[["seconds", "cpu_seconds"]] >= 0).all(axis=None)
