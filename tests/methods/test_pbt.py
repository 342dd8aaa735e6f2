"""Population-based training: who is in the population, and where exploring may lead."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tune_stn.methods import get_method
from tune_stn.space import Integer, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.study.run import CHECKPOINTS_PER_TRIAL
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


@pytest.mark.parametrize("method", ["pbt", "pb2"])
def test_kept_checkpoints_are_bounded_but_last_from_one_perturbation_to_the_next(
    make_context: Any, method: str
) -> None:
    for epochs in (1, 4, 10, 39, 50, 59, 200, 1000):
        plan: Any = get_method(method).plan(make_context(task=get_task("digits-mlp", epochs=epochs)))
        interval = plan.scheduler._perturbation_interval
        regular = math.ceil(interval / max(1, epochs // CHECKPOINTS_PER_TRIAL))
        # Two pauses, and the next copy; besides the one that is wanted, and one in case the newest is damaged.
        assert regular + 3 + 2 <= plan.kept_checkpoints <= 10
    assert not get_method(method).restores


def test_values_drawn_anew_are_uniform_in_the_logarithm(make_context: Any) -> None:
    scheduler: Any = get_method("pbt").plan(make_context()).scheduler
    config = {"hp": dict(get_task("digits-mlp").start)}
    explored = [scheduler._get_new_config(None, SimpleNamespace(config=config))[0]["hp"] for _ in range(800)]
    decays = [point["weight_decay"] for point in explored]
    anew = np.sort([decay for decay in decays if not np.isclose([0.8e-5, 1.2e-5], decay).any()])
    assert 0.18 < len(anew) / len(decays) < 0.32  # a quarter; the others are multiplied by 0.8 or 1.2
    shares = np.log10(anew) / 5 + 6 / 5  # of [1e-6, 1e-1]
    assert np.abs(shares - (np.arange(len(shares)) + 0.5) / len(shares)).max() < 0.12


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
        config, _operations = scheduler._get_new_config(None, SimpleNamespace(config=config))
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
        explored.append(scheduler._get_new_config(None, SimpleNamespace(config=config))[0])
    assert explored[0] == explored[1]
    assert explored[0] != explored[2]
