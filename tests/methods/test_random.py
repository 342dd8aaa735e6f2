"""Random search: the start values, then seeded draws from the space."""

from __future__ import annotations

from typing import Any

from tune_stn.methods import get_method
from tune_stn.tasks import get_task


def test_the_start_point_comes_first_and_then_draws_of_the_space(make_context: Any, draw: Any) -> None:
    task = get_task("fashion-mnist-cnn")
    drawn = draw(get_method("random").plan(make_context(task=task, budget=1000.0)), 40)
    assert drawn[0] == dict(task.start)
    assert len(drawn) == 40
    for point in drawn[1:]:
        assert list(task.space.check_values(point)) == list(task.space)
        assert type(point["cutout_holes"]) is int
    assert len({point["dropout_0"] for point in drawn}) == 40
    assert {point["cutout_holes"] for point in drawn} == {0, 1, 2, 3, 4, 5}


def test_draws_follow_from_the_seed(make_context: Any, draw: Any) -> None:
    one, same, other = (draw(get_method("random").plan(make_context(seed=seed)), 3) for seed in (1, 1, 2))
    assert one == same
    assert one[0] == other[0]
    assert one[1:] != other[1:]


def test_trials_enough_for_the_budget_even_if_all_diverge_at_once(make_context: Any) -> None:
    plan = get_method("random").plan(make_context(slots=3))
    assert plan.samples == 36
    assert plan.search_alg.max_concurrent == 3
    assert get_method("random").plan(make_context(trials=4)).samples == 4
