"""One plain trial at the task's start values."""

from __future__ import annotations

from typing import Any

from tune_stn.methods import get_method
from tune_stn.tasks import get_task


def test_one_trial_at_the_start_values(make_context: Any, draw: Any) -> None:
    plan = get_method("fixed").plan(make_context())
    assert plan.samples == 1
    assert draw(plan, 3) == [dict(get_task("digits-mlp").start)]


def test_more_trials_would_be_the_same_trial(make_context: Any) -> None:
    assert get_method("fixed").plan(make_context(trials=5)).samples == 1
