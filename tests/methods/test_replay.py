"""The plan of a replay, and what tells one schedule from another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tune_stn.methods import Context
from tune_stn.methods.replay import replay
from tune_stn.training.schedule import Schedule

MakeContext = Callable[..., Context]
SCHEDULE = Schedule.constant({"dropout_1": 0.3})


def test_one_trial_gets_the_schedule_itself(make_context: MakeContext, draw: Callable[..., Any]) -> None:
    method = replay(SCHEDULE)
    plan = method.plan(make_context())
    assert (method.name, method.algorithm, plan.samples) == ("replay", "fixed", 1)
    assert plan.config == {"schedule": SCHEDULE}
    assert draw(plan, 2) == [dict(make_context().task.start)]


def test_what_the_task_does_not_have_is_refused(make_context: MakeContext) -> None:
    with pytest.raises(ValueError, match="'dropout_7', which is not a hyperparameter of this task"):
        replay(Schedule.constant({"dropout_7": 0.3})).plan(make_context())


def test_settings_tell_schedules_apart() -> None:
    assert replay(SCHEDULE).settings == replay(Schedule.constant({"dropout_1": 0.3})).settings
    assert replay(SCHEDULE).settings != replay(Schedule.constant({"dropout_1": 0.30000001})).settings
