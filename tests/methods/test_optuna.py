"""Both methods that search through Optuna: what they can search, where they start, how many trials are random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray.tune.search import ConcurrencyLimiter

from tune_stn.methods import Context, get_method
from tune_stn.space import Integer, LogInteger, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.tasks import get_task

pytestmark = pytest.mark.parametrize("method", ["tpe", "gp-bo"])


def searched(method: str, context: Context) -> Any:
    """The searcher, told what it searches, as `tune.run` does it."""
    plan: Any = get_method(method).plan(context)
    plan.search_alg.set_search_properties("best_val_loss", "min", {"hp": plan.hp})
    return plan.search_alg


@pytest.mark.slow
def test_start_point_first_then_seeded_draws_of_the_space(make_context: Any, method: str) -> None:
    task = get_task("fashion-mnist-cnn")
    runs = []
    for seed in (0, 0, 1):
        search, points = searched(method, make_context(task=task, seed=seed)), []
        for number in range(4):
            points.append(search.suggest(str(number))["hp"])
            search.on_trial_complete(str(number), {"best_val_loss": 1.0 / (number + 1)})
        runs.append(points)
    assert runs[0][0] == dict(task.start)
    assert runs[0] == runs[1]
    assert runs[0][0] == runs[2][0]
    assert runs[0][1] != runs[2][1]
    for point in runs[0]:
        task.space.check_values(point)
        assert type(point["cutout_holes"]) is int


def test_no_more_trials_at_a_time_than_slots(make_context: Any, method: str) -> None:
    search = searched(method, make_context(slots=3))
    assert isinstance(search, ConcurrencyLimiter)
    assert [search.suggest(str(number)) is None for number in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(("budget", "random_trials"), [(35.0, 2), (90.0, 3), (200.0, 6), (5000.0, 10)])
def test_a_third_of_the_trials_are_random_but_at_most_ten(
    make_context: Any, method: str, budget: float, random_trials: int
) -> None:
    search = searched(method, make_context(budget=budget))
    assert search.searcher._sampler._n_startup_trials == random_trials


def test_random_trials_are_uniform_in_the_logarithm(make_context: Any, method: str) -> None:
    decays = []
    for seed in range(12):
        search = searched(method, make_context(budget=5000.0, seed=seed, slots=10))
        decays += [search.suggest(str(number))["hp"]["weight_decay"] for number in range(10)][1:]
    shares = np.sort(np.log10(decays) / 5 + 6 / 5)  # of [1e-6, 1e-1]; a linear draw is above 0.8 in nine of ten cases
    assert np.abs(shares - (np.arange(len(shares)) + 0.5) / len(shares)).max() < 0.15


@pytest.mark.parametrize(
    ("domain", "words"),
    [(Normal(0.1, 1.0), "any real number"), (LogUniform(0.25, 4, 0.25), "on a log scale in steps of 0.25")],
)
def test_what_it_cannot_search_is_refused_by_name(make_context: Any, method: str, domain: Any, words: str) -> None:
    task = get_task("digits-mlp")
    space = SearchSpace({**task.space, "weight_decay": domain})
    wide = replace(task, space=space, start={**task.start, "weight_decay": 0.25})
    with pytest.raises(ValueError, match=f"{method} cannot search 'weight_decay' over") as caught:
        get_method(method).plan(make_context(task=wide))
    assert words in str(caught.value)
    assert "accepted are uniform, integer and unstepped log domains" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("domain", [Uniform(0, 1, 0.25), Integer(0, 9), Integer(0, 9, 3), LogInteger(1, 64)])
def test_what_it_can_search_is_inside_the_domain(make_context: Any, method: str, domain: Any) -> None:
    task = get_task("digits-mlp")
    space = SearchSpace({**task.space, "weight_decay": domain})
    start = {**task.start, "weight_decay": 1 if isinstance(domain, Integer) and domain.step == 1 else 0}
    search = searched(method, make_context(task=replace(task, space=space, start=start), budget=200.0))
    for number in range(6):
        value = search.suggest(str(number))["hp"]["weight_decay"]
        assert domain.contains(value)
        search.on_trial_complete(str(number), {"best_val_loss": float(value)})


def test_a_model_leads_to_where_the_loss_is_low(make_context: Any, method: str) -> None:
    search = searched(method, make_context(budget=90.0))  # three random trials
    decays = []
    for number in range(11):
        decays.append(search.suggest(str(number))["hp"]["weight_decay"])
        search.on_trial_complete(str(number), {"best_val_loss": (np.log10(decays[-1]) + 3) ** 2})
    assert np.median(np.abs(np.log10(decays[6:]) + 3)) < 0.75  # of random draws: 1.25
