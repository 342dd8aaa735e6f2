"""Self-tuning methods: the start values first, then restarts from around where trials ended while budget is left."""

from __future__ import annotations

from typing import Any

import pytest

from tune_stn.methods import Context, get_method
from tune_stn.space import LogUniform
from tune_stn.tasks import get_task


def searched(name: str, context: Context) -> Any:
    """The searcher, told what it searches, as `tune.run` does it; the task hidden, as a study of one's own has it."""
    plan = get_method(name).plan(context)
    plan.search_alg.set_search_properties(None, None, {"task": ("__ref_ph", "1f2e"), "hp": plan.hp})
    return plan.search_alg


def ended(loss: float, **values: float) -> dict[str, Any]:
    """The last report of a trial that has tuned to these values, and is sure of them."""
    hp = dict(get_task("digits-mlp").start) | values
    return {"best_val_loss": loss} | {f"hp/{n}": v for n, v in hp.items()} | {f"scale/{n}": 0.01 for n in hp}


@pytest.mark.parametrize("name", ["stn", "delta-stn", "auto", "progress-ratio"])
def test_start_values_first_then_restarts(make_context: Any, name: str) -> None:
    method = get_method(name)
    assert method.algorithm == name
    assert method.restores
    task = get_task("digits-mlp")
    # Trials of 10 epochs of at least plain cost, in a budget of 35, and one more.
    assert method.plan(make_context()).samples == 5
    search, drawn = searched(name, make_context()), []
    for number in range(5):
        drawn.append(search.suggest(str(number))["hp"])
        search.on_trial_complete(str(number), ended(0.1 * (number + 1)))
    assert drawn[0] == dict(task.start)
    assert len({tuple(point.values()) for point in drawn}) == 5
    for point in drawn:
        task.space.check_values(point)


def test_restarts_begin_around_where_the_best_trial_ended(make_context: Any) -> None:
    near = []
    domain = get_task("digits-mlp").space["weight_decay"]
    assert isinstance(domain, LogUniform)
    for seed in range(40):
        search = searched("stn", make_context(seed=seed))
        search.suggest("one")
        search.on_trial_complete("one", ended(0.1, weight_decay=1e-2))
        near.append(3e-3 < search.suggest("two")["hp"]["weight_decay"] < 3e-2)
    assert 0.5 < sum(near) / len(near) < 0.95  # the others explore


def test_all_restart_from_the_same_draws_and_the_seed_makes_others(make_context: Any) -> None:
    def draws(name: str, **more: Any) -> list[Any]:
        search, found = searched(name, make_context(**more)), []
        for number in range(3):
            found.append(search.suggest(str(number)))
            search.on_trial_complete(str(number), ended(0.1))
        return found

    assert draws("stn") == draws("delta-stn") == draws("auto") == draws("progress-ratio")
    assert draws("stn")[1:] != draws("stn", seed=1)[1:]


@pytest.mark.parametrize(
    ("slots", "budget", "trials", "at_a_time"),
    [
        (1, 1000.0, None, 1),
        (4, 1000.0, None, 4),
        (4, 35.0, None, 2),  # of 10 epochs that cost 1.5 at least: a third would be cut short, and so would the others
        (4, 5.0, None, 1),
        (4, float("inf"), 3, 3),
        (2, float("inf"), 3, 2),
    ],
)
def test_trials_go_side_by_side_as_far_as_the_budget_lasts_them(
    make_context: Any, slots: int, budget: float, trials: int | None, at_a_time: int
) -> None:
    search = searched("stn", make_context(slots=slots, budget=budget, trials=trials))
    given = [search.suggest(str(number)) for number in range(6)]
    assert [one is not None for one in given] == [number < at_a_time for number in range(6)]
    search.on_trial_complete("0", ended(0.1))
    assert search.suggest("next") is not None  # at once, whatever the others do
