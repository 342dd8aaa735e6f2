"""Median stopping: what is compared with what, and from when on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tune_stn.methods import get_method
from tune_stn.tasks import get_task


class Controller:
    """Says that trials are waiting."""

    def get_live_trials(self) -> list[Any]:
        return [SimpleNamespace(status="PENDING"), SimpleNamespace(status="RUNNING")]


class Trial:
    """As much of a trial as the scheduler looks at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def trained(scheduler: Any, number: int, losses: list[float]) -> list[str]:
    """Decisions on the epochs of one trial, as far as it comes."""
    trial = Trial(str(number))
    scheduler.on_trial_add(None, trial)
    decisions: list[str] = []
    for epoch, loss in enumerate(losses, start=1):
        result = {"epoch": epoch, "val_loss": loss, "best_val_loss": min(losses[:epoch])}
        decisions.append(scheduler.on_trial_result(Controller(), trial, result))
        if decisions[-1] == "STOP":
            break
    return decisions


def test_start_point_first_then_seeded_draws(make_context: Any, draw: Any) -> None:
    plan: Any = get_method("median").plan(make_context(slots=3))
    assert plan.samples == 36
    assert plan.search_alg.max_concurrent == 3
    drawn = draw(plan, 5)
    assert drawn[0] == dict(get_task("digits-mlp").start)
    assert drawn == draw(get_method("random").plan(make_context(slots=3)), 5)


@pytest.mark.parametrize(("epochs", "grace"), [(4, 1), (10, 1), (60, 6)])
def test_the_first_tenth_is_not_judged(make_context: Any, epochs: int, grace: int) -> None:
    scheduler = get_method("median").plan(make_context(task=get_task("digits-mlp", epochs=epochs))).scheduler
    for number in range(3):
        assert trained(scheduler, number, [1.0] * epochs) == ["CONTINUE"] * epochs
    assert trained(scheduler, 3, [2.0] * grace) == ["CONTINUE"] * (grace - 1) + ["STOP"]


def test_the_best_of_a_trial_against_the_averages_of_the_others(make_context: Any) -> None:
    """The others' averages at epoch 3 are 3, 4 and 5, so their median is 4; of their best so far, it would be 3."""
    scheduler = get_method("median").plan(make_context()).scheduler
    for number in range(3):
        assert trained(scheduler, number, [4.0 + number, 1.0 + number, 4.0 + number]) == ["CONTINUE"] * 3
    assert trained(scheduler, 3, [4.9, 3.4, 9.0]) == ["CONTINUE"] * 3  # at epoch 3, it is its best that counts
    assert trained(scheduler, 4, [4.9, 3.9]) == ["CONTINUE", "STOP"]


def test_too_few_to_compare_with_stop_and_pause_nobody(make_context: Any) -> None:
    scheduler = get_method("median").plan(make_context()).scheduler
    for number, loss in enumerate([1.0, 2.0, 3.0]):
        assert trained(scheduler, number, [loss] * 10) == ["CONTINUE"] * 10
    assert trained(scheduler, 3, [3.0] * 10) == ["STOP"]


def test_ray_saves_no_scheduler_so_a_run_that_was_cut_off_starts_again() -> None:
    assert not get_method("median").restores
