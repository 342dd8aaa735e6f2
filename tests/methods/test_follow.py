"""What is made from the run of `auto`: its schedule and its last values, on the plain network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tune_stn.methods import Context, get_method
from tune_stn.space import Integer, SearchSpace
from tune_stn.tasks import get_task
from tune_stn.training.schedule import Schedule

MakeContext = Callable[..., Context]
START = dict(get_task("digits-mlp").start)
SCHEDULE = Schedule(("dropout_1", "dropout_2"), np.array([0, 9, 12]), np.array([[0.1, 0.2], [0.3, 0.2], [0.4, 0.1]]))


@pytest.mark.parametrize("name", ["replayed", "last-values"])
def test_one_plain_trial_after_auto(make_context: MakeContext, name: str) -> None:
    method = get_method(name)
    assert (method.algorithm, method.follows) == ("fixed", "auto")
    assert method.plan(make_context(followed=SCHEDULE, trials=3)).samples == 1


def test_the_whole_schedule_is_replayed(make_context: MakeContext, draw: Callable[..., Any]) -> None:
    plan = get_method("replayed").plan(make_context(followed=SCHEDULE))
    assert plan.config == {"schedule": SCHEDULE}
    assert draw(plan, 2) == [START]


def test_the_last_values_are_held_from_the_start(make_context: MakeContext, draw: Callable[..., Any]) -> None:
    plan = get_method("last-values").plan(make_context(followed=SCHEDULE))
    assert plan.config == {}
    assert draw(plan, 2) == [START | {"dropout_1": 0.4, "dropout_2": 0.1}]


def test_integers_stay_integers(make_context: MakeContext) -> None:
    task = get_task("digits-mlp")
    space = SearchSpace({**task.space, "input_scale": Integer(0, 5)})
    task = replace(task, space=space, start=START | {"input_scale": 1})
    plan = get_method("last-values").plan(make_context(task=task, followed=Schedule.constant({"input_scale": 3.0})))
    assert plan.hp["input_scale"] == 3
    assert type(plan.hp["input_scale"]) is int


@pytest.mark.parametrize("name", ["replayed", "last-values"])
def test_without_a_schedule_of_this_task_nothing_is_planned(make_context: MakeContext, name: str) -> None:
    with pytest.raises(ValueError, match="made from a run of auto, and the context holds the schedule of none"):
        get_method(name).plan(make_context())
    with pytest.raises(ValueError, match="'dropout_7', which is not a hyperparameter of this task"):
        get_method(name).plan(make_context(followed=Schedule.constant({"dropout_7": 0.3})))
