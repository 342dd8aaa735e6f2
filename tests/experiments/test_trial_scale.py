"""The script of many trials measures each tenth of a run; its tables are those of test_export_scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd


def test_smoke(run_script: Callable[..., None], tmp_path: Path) -> None:
    run_script("trial_scale.py", "callbacks", "--smoke-test", "--results", str(tmp_path))
    parts = pd.read_csv(tmp_path / "callbacks.csv")
    assert list(parts["until_report"]) == [20 * part for part in range(1, 11)]
    assert (parts[["main_thread_ms", "process_ms", "clock_ms"]] > 0).all(axis=None)
    assert parts["peak_mb"].is_monotonic_increasing
