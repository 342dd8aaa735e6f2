"""The script of what a trial costs beside its training runs, and its sums are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_smoke(run_script: Callable[..., None], tmp_path: Path) -> None:
    run_script("trial_cost.py", "--smoke-test", "--results", str(tmp_path))
    start, driver, test = (pd.read_csv(tmp_path / f"{name}.csv").iloc[0] for name in ("start", "driver", "test"))
    parts = start[["process", "make_task", "data", "trainer"]]
    assert (parts > 0).all()
    assert start["until_epoch_1"] == pytest.approx(parts.sum())
    assert 0 < driver["recorder_ms"] < driver["ours_ms"] < driver["main_thread_ms"]
    assert driver["reports"] == 3
    assert 2 <= test["where_used_evaluations"] <= test["always_evaluations"] == test["epochs"] == 8
