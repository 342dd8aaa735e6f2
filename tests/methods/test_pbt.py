"""Population-based training: who is in the population, and where exploring may lead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tune_stn.methods import get_method
from tune_stn.space import Integer, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.tasks import get_task


def test_start_point_first_and_as_many_members_as_full_trials_are_paid(make_context: Any, draw: Any) -> None:
    plan = get_method("pbt").plan(make_context(budget=75.0))
    assert plan.samples == 8
    assert draw(plan, 2)[0] == dict(get_task("digits-mlp").start)
    assert get_method("pbt").plan(make_context(budget=5.0)).samples == 4  # its quartiles must not be empty
    assert get_method("pbt").plan(make_context(trials=6)).samples == 6


@pytest.mark.parametrize(("epochs", "interval"), [(4, 1), (10, 1), (50, 5), (100, 10)])
def test_ten_perturbations_a_trial(make_context: Any, epochs: int, interval: int) -> None:
    plan = get_method("pbt").plan(make_context(task=get_task("digits-mlp", epochs=epochs)))
    assert plan.scheduler._perturbation_interval == interval
    assert (plan.scheduler._time_attr, plan.scheduler.metric) == ("epoch", "val_loss")


def test_every_checkpoint_is_kept_for_it_may_be_copied_later(make_context: Any) -> None:
    assert get_method("pbt").plan(make_context()).kept_checkpoints is None
    assert not get_method("pbt").restores


def test_exploring_stays_in_the_domains(make_context: Any) -> None:
    task = get_task("digits-mlp")
    domains: dict[str, Any] = {
        "dropout_input": Uniform(0.0, 0.9),
        "dropout_1": Uniform(0.0, 0.75, 0.25),
        "dropout_2": Normal(0.0, 1.0),
        "input_scale": Integer(0, 5),
        "weight_decay": LogUniform(1e-6, 1e-1),
    }
    start = {"dropout_input": 0.9, "dropout_1": 0.75, "dropout_2": 0.0, "input_scale": 5, "weight_decay": 1e-1}
    task = replace(task, space=SearchSpace(domains), start=start)
    scheduler = get_method("pbt").plan(make_context(task=task)).scheduler
    config: dict[str, Any] = {"task": "x", "seed": 0, "hp": dict(start)}
    seen = set()
    for _ in range(60):
        config, _operations = scheduler._get_new_config(None, type("Trial", (), {"config": config})())
        assert list(config["hp"]) == list(domains)
        for name, value in config["hp"].items():
            assert domains[name].contains(value), (name, value)
        assert type(config["hp"]["input_scale"]) is int
        assert (config["task"], config["seed"]) == ("x", 0)
        seen.add(config["hp"]["dropout_input"])
    assert len(seen) > 20  # it does explore


def test_explored_values_follow_from_the_seed(make_context: Any) -> None:
    explored = []
    for seed in (0, 0, 1):
        scheduler = get_method("pbt").plan(make_context(seed=seed)).scheduler
        config = {"hp": dict(get_task("digits-mlp").start)}
        explored.append(scheduler._get_new_config(None, type("Trial", (), {"config": config})())[0])
    assert explored[0] == explored[1]
    assert explored[0] != explored[2]
