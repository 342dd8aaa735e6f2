"""The script of filled clusters counts slots in use from when epochs slept."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments")
    return importlib.import_module("filled_cluster")


def test_slots_in_use(script: Any) -> None:
    """Two slots: one from 2 to 6, the other from 4 to 10, where another epoch takes it over at 8."""
    seen = script.Seen()
    seen.wall_s = 20.0
    seen.times, seen.trials = script.in_use([2.0, 4.0, 8.0], [6.0, 8.0, 10.0])
    assert seen.times == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert seen.trials == [1, 2, 1, 1, 0]
    reports = pd.DataFrame({"method": "random", "seed": 0, "trial_id": ["a", "b"]})
    row = script.summary(seen, reports, 2, bound_s=5.0)
    assert (row["runs"], row["trials"], row["first_trial_s"], row["last_trial_s"]) == (1, 2, 2.0, 10.0)
    assert row["slots_in_use"] == 10 / (2 * 8)
    assert (row["ratio"], row["trials_ratio"]) == (4.0, 8 / 5)


def test_what_looks_saw_before_and_after_the_trials_does_not_count(script: Any) -> None:
    seen = script.Seen()
    seen.wall_s, seen.times, seen.trials = 6.0, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0, 2, 0, 2, 0, 0]
    row = script.summary(seen, pd.DataFrame({"method": [], "seed": [], "trial_id": []}), 2, bound_s=3.0)
    assert (row["first_trial_s"], row["last_trial_s"], row["trials_ratio"]) == (1.0, 4.0, 1.0)
    assert row["slots_in_use"] == pytest.approx(2 / 3)
