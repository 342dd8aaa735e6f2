"""PB2: on which scale it sees the domains, where exploring leads, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tune_stn.methods import get_method
from tune_stn.space import Integer, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.tasks import get_task
from tune_stn.tuning.trainable import OWN_KEYS

SETTINGS = {"task": "x", "seed": 3, "optimizer_args": {}, "response": {"a/b": 4}}


class Member:
    """As much of a trial as the scheduler looks at."""

    def __init__(self, number: int, hp: dict[str, float]) -> None:
        self.trial_id = self.experiment_tag = str(number)
        self.config: dict[str, Any] = {**SETTINGS, "hp": hp}
        self.evaluated_params: dict[str, Any] = {}
        self.status = "RUNNING"
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=10))
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    def __str__(self) -> str:
        return self.trial_id

    def is_finished(self) -> bool:
        return False

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class Controller:
    """As much of Tune's loop as the scheduler asks for."""

    search_alg = None

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def get_trials(self) -> list[Member]:
        return self.members

    def _schedule_trial_save(self, trial: Member, result: dict[str, Any]) -> str:
        return f"checkpoint of {trial}"

    def pause_trial(self, trial: Member, should_checkpoint: bool) -> None:
        trial.status = "PAUSED"


def population(scheduler: Any, points: list[dict[str, float]]) -> Controller:
    controller = Controller([Member(number, point) for number, point in enumerate(points)])
    for member in controller.members:
        scheduler.on_trial_add(controller, member)
    return controller


def train(scheduler: Any, controller: Controller, epochs: int, speed: Callable[[dict[str, float]], float]) -> list[Any]:
    """Losses that fall at a speed that depends on the hyperparameters; returns those that exploring chose."""
    losses = dict.fromkeys(controller.members, 2.0)
    chosen = []
    for epoch in range(1, epochs + 1):
        for member in controller.members:
            losses[member] -= speed(member.config["hp"])
        for member in controller.members:
            scheduler.on_trial_result(controller, member, {"epoch": epoch, "val_loss": losses[member]})
            if member.status == "PAUSED":  # it is a copy of a better one now
                member.status = "RUNNING"
                losses[member] = min(losses.values())
                chosen.append(member.config["hp"])
    return chosen


def test_start_point_first_and_as_many_members_as_full_trials_are_paid(make_context: Any, draw: Any) -> None:
    plan = get_method("pb2").plan(make_context(budget=75.0))
    assert plan.samples == 8
    drawn = draw(plan, 4)
    assert drawn[0] == dict(get_task("digits-mlp").start)
    assert drawn == draw(get_method("pbt").plan(make_context(budget=75.0)), 4)
    assert get_method("pb2").plan(make_context(budget=5.0)).samples == 4


@pytest.mark.parametrize(("epochs", "interval"), [(4, 1), (50, 5), (100, 10)])
def test_ten_perturbations_a_trial_by_the_present_loss(make_context: Any, epochs: int, interval: int) -> None:
    scheduler: Any = get_method("pb2").plan(make_context(task=get_task("digits-mlp", epochs=epochs))).scheduler
    assert scheduler._perturbation_interval == interval
    assert (scheduler._time_attr, scheduler.metric) == ("epoch", "val_loss")


def test_a_trial_has_its_place_on_the_scale_of_each_domain(make_context: Any) -> None:
    assert "coordinates" in OWN_KEYS  # the trial takes them for no setting
    task = get_task("digits-mlp")
    scheduler: Any = get_method("pb2").plan(make_context()).scheduler
    hp = {**task.start, "dropout_1": 0.45, "weight_decay": 10**-4.75}
    (member,) = population(scheduler, [hp]).members
    assert list(member.config["coordinates"].values()) == pytest.approx([0.05 / 0.9, 0.5, 0.05 / 0.9, 0.05, 0.25])
    assert member.config["hp"] == hp
    member.config["coordinates"]["1"] = 0.7  # as exploring changes them
    scheduler.on_trial_add(SimpleNamespace(search_alg=None), member)  # after a failure
    assert member.config["coordinates"]["1"] == 0.7


def test_exploring_stays_in_the_domains_and_changes_nothing_else(make_context: Any) -> None:
    domains: dict[str, Any] = {
        "dropout_input": Uniform(0.0, 0.9),
        "dropout_1": Uniform(0.0, 0.75, 0.25),
        "dropout_2": Normal(0.0, 1.0),
        "input_scale": Integer(0, 5),
        "weight_decay": LogUniform(1e-6, 1e-1),
    }
    columns = (
        [0.0, 0.3, 0.6, 0.9],
        [0.0, 0.25, 0.5, 0.75],
        [-1.0, 0.0, 0.5, 2.0],
        [0, 1, 3, 5],
        [1e-6, 1e-4, 1e-3, 1e-1],
    )
    points = [dict(zip(domains, row, strict=True)) for row in zip(*columns, strict=True)]
    task = replace(get_task("digits-mlp", epochs=10), space=SearchSpace(domains), start=points[0])
    scheduler: Any = get_method("pb2").plan(make_context(task=task)).scheduler
    controller = population(scheduler, points)
    chosen = train(scheduler, controller, 4, lambda hp: 0.1 * hp["input_scale"])
    assert len({hp["dropout_input"] for hp in chosen}) >= 2
    for hp in chosen:
        assert list(task.space.check_values(hp)) == list(domains)
        assert type(hp["input_scale"]) is int
    # PB2 counts changes of the loss between reports of a trial at the very same numbers: a copy must report at them.
    for _, rows in scheduler.data.groupby(["Trial", *(f"coordinates/{number}" for number in range(len(domains)))]):
        assert len(rows) >= 2 or rows["Time"].max() == 4
    for member in controller.members:
        assert {key: member.config[key] for key in SETTINGS} == SETTINGS
        assert set(member.config) == {*SETTINGS, "hp", "coordinates"}


PENALTIES = [{"penalty": 10.0**power} for power in (-2.9, -1.5, 0.0, 0.9)]


def test_a_logarithmic_domain_is_explored_in_the_logarithm(make_context: Any) -> None:
    """The best penalty is 0.03, in the middle of the logarithm of [0.001, 10]; on a linear scale it is at its end."""
    scheduler: Any = get_method("pb2").plan(make_context(task=get_task("ridge", epochs=10))).scheduler
    controller = population(scheduler, PENALTIES)
    chosen = train(scheduler, controller, 8, lambda hp: 0.1 - 0.02 * abs(np.log10(hp["penalty"]) + 1.5))
    assert len(chosen) >= 4
    assert np.median([abs(np.log10(hp["penalty"]) + 1.5) for hp in chosen]) < 0.8


def test_explored_values_follow_from_the_seed(make_context: Any) -> None:
    points = [{"penalty": 10.0**power} for power in np.linspace(-2.9, 0.9, 9)]
    explored = []
    for seed in (0, 0, 1):
        scheduler: Any = get_method("pb2").plan(make_context(task=get_task("ridge", epochs=10), seed=seed)).scheduler
        explored.append(train(scheduler, population(scheduler, points), 2, lambda hp: hp["penalty"]))
    assert explored[0] == explored[1]
    assert explored[0] != explored[2]
