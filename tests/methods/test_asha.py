"""ASHA: at which epochs trials are judged, and who goes on."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from tune_stn.methods import get_method
from tune_stn.tasks import get_task


def judge(scheduler: Any, trial: Any, epoch: int, loss: float) -> str:
    decision: str = scheduler.on_trial_result(None, trial, {"epoch": epoch, "best_val_loss": loss})
    return decision


def new_trial(scheduler: Any, number: int) -> Any:
    trial = SimpleNamespace(trial_id=str(number))
    scheduler.on_trial_add(None, trial)
    return trial


def test_start_point_first_then_seeded_draws(make_context: Any, draw: Any) -> None:
    method = get_method("asha")
    one, same, other = (draw(method.plan(make_context(seed=seed)), 5) for seed in (0, 0, 1))
    assert one[0] == other[0] == dict(get_task("digits-mlp").start)
    assert one == same
    assert one[1:] != other[1:]
    assert one == draw(get_method("random").plan(make_context()), 5)
    plan: Any = method.plan(make_context(slots=3))
    assert plan.samples == 36
    assert plan.search_alg.max_concurrent == 3


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(4, [1, 3]), (10, [1, 3, 9]), (60, [2, 6, 18, 54]), (100, [3, 9, 27, 81])]
)
def test_rungs(make_context: Any, epochs: int, rungs: list[int]) -> None:
    """A trial that is worse than one before it at the same epoch is stopped at the rungs, and nowhere else."""
    for rung in rungs:
        scheduler = get_method("asha").plan(make_context(task=get_task("digits-mlp", epochs=epochs))).scheduler
        good, bad = new_trial(scheduler, 0), new_trial(scheduler, 1)
        assert all(judge(scheduler, good, epoch, 1.0) == "CONTINUE" for epoch in range(1, epochs))
        assert judge(scheduler, good, epochs, 1.0) == "STOP"
        for epoch in range(1, rung):
            assert judge(scheduler, bad, epoch, 1.0) == "CONTINUE"
        assert judge(scheduler, bad, rung, 2.0) == "STOP"


def test_the_best_third_goes_on(make_context: Any) -> None:
    scheduler = get_method("asha").plan(make_context()).scheduler
    decisions = [judge(scheduler, new_trial(scheduler, n), 1, loss) for n, loss in enumerate([3.0, 2.0, 1.0, 2.5, 1.2])]
    assert decisions == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP", "CONTINUE"]


def test_trials_that_diverged_at_once_count_as_the_worst(make_context: Any) -> None:
    scheduler: Any = get_method("asha").plan(make_context()).scheduler
    for number in range(2):
        scheduler.on_trial_complete(None, new_trial(scheduler, number), {"epoch": 1, "best_val_loss": math.inf})
    decisions = [judge(scheduler, new_trial(scheduler, n), 1, loss) for n, loss in [(2, 2.0), (3, 2.5), (4, 1.0)]]
    assert decisions == ["CONTINUE", "CONTINUE", "CONTINUE"]
    assert judge(scheduler, new_trial(scheduler, 5), 1, 2.6) == "STOP"
    scheduler.on_trial_complete(None, new_trial(scheduler, 6), {})  # ended before its first report


def test_ray_saves_no_scheduler_so_a_run_that_was_cut_off_starts_again() -> None:
    assert not get_method("asha").restores
