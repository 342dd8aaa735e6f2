"""Self-tuning methods: the start values first, restarts from drawn ones while budget is left."""

from __future__ import annotations

from typing import Any

import pytest

from tune_stn.methods import get_method
from tune_stn.tasks import get_task


@pytest.mark.parametrize("name", ["stn", "delta-stn"])
def test_start_values_first_then_restarts(make_context: Any, draw: Any, name: str) -> None:
    method = get_method(name)
    assert method.algorithm == name
    assert method.restores
    task = get_task("digits-mlp")
    plan = method.plan(make_context())
    assert plan.samples == 5  # trials of 10 epochs of at least plain cost, in a budget of 35, and one more
    drawn = draw(plan, 3)
    assert drawn[0] == dict(task.start)
    assert drawn[1] != drawn[2]
    for point in drawn[1:]:
        task.space.check_values(point)


def test_both_restart_from_the_same_draws(make_context: Any, draw: Any) -> None:
    assert draw(get_method("stn").plan(make_context()), 3) == draw(get_method("delta-stn").plan(make_context()), 3)


def test_only_one_trial_at_a_time(make_context: Any, tmp_path: Any) -> None:
    from ray.tune.experiment import Experiment

    from tune_stn.tuning.trainable import STNTrainable

    plan = get_method("stn").plan(make_context(slots=8))
    plan.search_alg.add_configurations(
        [Experiment("x", STNTrainable, config={"hp": plan.hp}, num_samples=3, storage_path=str(tmp_path))]
    )
    first = plan.search_alg.next_trial()
    assert first is not None
    assert plan.search_alg.next_trial() is None
    plan.search_alg.on_trial_complete(first.trial_id)
    assert plan.search_alg.next_trial() is not None
