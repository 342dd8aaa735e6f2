"""HyperBand: random draws, brackets as long as the task's epochs."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import HyperBandScheduler

from tune_stn.methods import get_method
from tune_stn.tasks import get_task


def test_start_point_first_and_no_trial_longer_than_the_tasks_epochs(make_context: Any, draw: Any) -> None:
    plan = get_method("hyperband").plan(make_context())
    assert isinstance(plan.scheduler, HyperBandScheduler)
    assert plan.scheduler._max_t_attr == 10
    assert plan.scheduler._eta == 3
    assert plan.scheduler._time_attr == "epoch"
    assert plan.samples == 36
    drawn = draw(plan, 4)
    assert drawn[0] == dict(get_task("digits-mlp").start)
    assert len({point["dropout_1"] for point in drawn}) == 4


def test_ray_saves_no_scheduler_so_a_run_that_was_cut_off_starts_again() -> None:
    assert not get_method("hyperband").restores
