"""Grid search: which points, in which order, and when it goes on to a finer grid."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tune_stn.methods import Context, get_method
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import Integer, LogUniform, SearchSpace, Uniform
from tune_stn.tasks import Task, get_task


def regression(**domains: Any) -> Task:
    """Ridge regression with a penalty over each domain, of one epoch a trial."""
    start = {name: domain.low for name, domain in domains.items()}
    penalties = tuple(map(WeightDecay, domains))
    return replace(get_task("ridge", epochs=1), space=SearchSpace(domains), start=start, penalties=penalties)


def test_start_values_then_the_full_grid_that_is_paid_then_a_finer_one(make_context: Any, draw: Any) -> None:
    plan = get_method("grid").plan(make_context(budget=330.0))  # 33 full trials: the start values and 2 ** 5
    assert plan.samples == 331  # if every trial diverges at once
    drawn = draw(plan, 60)
    task = get_task("digits-mlp")
    assert drawn[0] == dict(task.start)
    decays = [10 ** (-6 + 5 / 4), 10 ** (-6 + 15 / 4)]
    values = [[0.225, 0.675]] * 3 + [[0.25, 0.75]] + [decays]
    corners = list(itertools.product(*values))
    found = [tuple(point.values()) for point in drawn[1:33]]
    np.testing.assert_allclose(sorted(found), sorted(corners))
    assert found != sorted(found)
    assert list(drawn[1]) == list(task.space)
    finer = {point["dropout_1"] for point in drawn[33:]}
    assert sorted(finer) == pytest.approx([0.15, 0.45, 0.75])
    assert sorted({point["weight_decay"] for point in drawn[33:]}) == pytest.approx(
        [10 ** (k * 5 / 6 - 6) for k in (1, 3, 5)]
    )


def test_where_no_full_grid_is_paid_the_coarsest_in_random_order(make_context: Any, draw: Any) -> None:
    drawn = draw(get_method("grid").plan(make_context(budget=35.0)), 33)
    assert len({tuple(point.values()) for point in drawn[1:]}) == 2**5
    assert sorted({point["input_scale"] for point in drawn[1:]}) == pytest.approx([0.25, 0.75])
    # In the order of counting, the first trials would differ in the last hyperparameters alone.
    assert all(len({point[name] for point in drawn[1:9]}) == 2 for name in drawn[0])


@pytest.mark.parametrize(("trials", "levels"), [(1, 2), (3, 2), (8, 7), (101, 100)])
def test_one_hyperparameter_gets_a_point_of_equal_shares_for_each_trial(
    make_context: Any, draw: Any, trials: int, levels: int
) -> None:
    task = regression(penalty=LogUniform(1e-3, 1e1))
    drawn = draw(get_method("grid").plan(make_context(task=task, trials=max(trials, levels + 1), budget=trials)), 200)
    shares = sorted(math.log10(point["penalty"]) / 4 + 0.75 for point in drawn[1 : levels + 1])
    assert shares == pytest.approx([(i + 0.5) / levels for i in range(levels)])


def test_order_follows_from_the_seed(make_context: Any, draw: Any) -> None:
    one, same, other = (draw(get_method("grid").plan(make_context(seed=seed)), 33) for seed in (1, 1, 2))
    assert one == same
    assert one[0] == other[0]
    assert one[1:] != other[1:]
    assert sorted(tuple(point.values()) for point in one) == sorted(tuple(point.values()) for point in other)


def test_integers_as_such_and_no_point_outside_its_domain(make_context: Any, draw: Any) -> None:
    task = get_task("fashion-mnist-cnn")
    for point in draw(get_method("grid").plan(make_context(task=task, budget=2000.0)), 200):
        task.space.check_values(point)
        assert type(point["cutout_holes"]) is int


def test_a_space_of_few_members_is_searched_once(make_context: Any, draw: Any) -> None:
    task = regression(a=Integer(1, 3), b=Uniform(0.0, 1.0, 0.5))
    plan = get_method("grid").plan(make_context(task=task, budget=50.0))
    drawn = draw(plan, 50)
    assert plan.samples == len(drawn) == 9
    assert {tuple(point.values()) for point in drawn} == set(itertools.product([1, 2, 3], [0.0, 0.5, 1.0]))


def test_a_grid_too_large_to_be_listed(make_context: Any, draw: Any) -> None:
    task = regression(**{f"penalty_{number}": LogUniform(1e-3, 1e1) for number in range(70)})
    drawn = draw(get_method("grid").plan(make_context(task=task, budget=50.0)), 100)
    assert len({tuple(point.values()) for point in drawn}) == 51
    assert all(len({point[name] for point in drawn[1:]}) == 2 for name in task.space)


def test_a_number_of_trials_and_no_more_at_a_time_than_slots(make_context: Any) -> None:
    context: Context = make_context(budget=math.inf, trials=4, slots=3)
    plan: Any = get_method("grid").plan(context)
    assert plan.samples == 4
    assert plan.search_alg.max_concurrent == 3


def test_a_budget_of_more_trials_than_can_be_listed_is_refused_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"budget=1e\+12: grid would run .* trials of \d+ epochs, and lists at most 100000"
    ):
        get_method("grid").plan(Context(get_task("ridge"), 1e12, 0, 1))
