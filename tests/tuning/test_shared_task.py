"""A large task is put into Ray's object store once, by all ways to give it to a trial; no process is started."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ray import tune

from tune_stn.data.splits import Splits
from tune_stn.tasks import Task, get_task
from tune_stn.tuning import shared_task as module
from tune_stn.tuning.shared_task import SharedTask, share, share_in
from tune_stn.tuning.trainable import STNTrainable

pytestmark = pytest.mark.ray
SETTINGS = {"train_images": 100, "hidden": 4}


def with_data(kilobytes: int) -> Task:
    task = get_task("digits-mlp", **SETTINGS)
    splits, ballast = task.data(0), torch.zeros(kilobytes, 250)

    def data(seed: int) -> Splits:
        assert len(ballast) == kilobytes
        return splits

    return replace(task, data=data)


REQUESTS: dict[str, Callable[[], type[STNTrainable]]] = {
    "plain": lambda: STNTrainable,
    "resources": lambda: tune.with_resources(STNTrainable, {"cpu": 2}),
    "resources by config": lambda: tune.with_resources(STNTrainable, lambda config: {"cpu": config["cpus"]}),
}


@pytest.mark.parametrize("how", REQUESTS)
def test_a_large_task_is_replaced_in_each_trials_config(cluster: Any, how: str) -> None:
    """By the call that Tune makes for each new or restored trial; which asks for the resources that it did."""
    task, configs = with_data(2000), [{"task": None, "cpus": 2} for _ in range(2)]
    for config in configs:
        config["task"] = task
        asked = REQUESTS[how]().default_resource_request(config)
        assert asked == {
            "plain": None,
            "resources": tune.PlacementGroupFactory([{"CPU": 2}]),
            "resources by config": {"cpu": 2},
        }.get(how)
    shared = configs[0]["task"]
    assert isinstance(shared, SharedTask)
    assert configs[1]["task"] is shared  # put once
    assert len(pickle.dumps(configs)) < 1000
    there = shared.fetch()
    assert there.name == task.name
    assert torch.equal(there.data(0).train.inputs, task.data(0).train.inputs)


def test_small_tasks_and_names_travel_in_the_config(cluster: Any) -> None:
    for task in (with_data(1), "digits-mlp", None):
        config = {"task": task}
        share_in(config)
        assert config == {"task": task}


def test_a_task_that_is_gone_is_forgotten(cluster: Any) -> None:
    known = len(module._shared)
    task = with_data(2000)
    share(task)
    assert len(module._shared) == known + 1
    del task
    assert len(module._shared) == known


def test_a_dead_object_store_is_said_and_a_task_given_again_is_put_again(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `Tuner.restore` does after a crash of the driver: trials come with the config of before, or a new one."""
    task = with_data(2000)
    before = share(task)
    monkeypatch.setattr(module, "_session", lambda: "a later one")
    message = r"'digits-mlp' was in the object store of a Ray session that is over: .*param_space=\{'task': task"
    with pytest.raises(ValueError, match=message):
        STNTrainable.default_resource_request({"task": before})
    config = {"task": task}
    STNTrainable.default_resource_request(config)
    again = config["task"]
    assert (again.session, again.reference != before.reference) == ("a later one", True)
    assert again.fetch().name == task.name


def test_a_large_task_is_warned_of_with_the_way_around_it(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WARNED_FROM", module.MEGABYTE)
    task = with_data(2000)
    with pytest.warns(UserWarning, match=r"'digits-mlp' has 2 MB of data .*name the task as 'module:attribute'"):
        share(task)
    share(task)  # once


@pytest.mark.parametrize("how", ["config", "parameter"])
def test_a_trial_trains_the_task_and_reports_none_of_it(cluster: Any, how: str) -> None:
    """And keeps its data where it starts another trial in the same process."""
    shared = share(with_data(2000))
    rest = {"algorithm": "fixed", "epochs": 1}
    trainable, config = STNTrainable, rest | {"task": shared}
    if how == "parameter":
        trainable, config = tune.with_parameters(STNTrainable, task=shared), rest
    trial = trainable(config)
    assert len(json.dumps(trial.train(), default=repr)) < 3000
    inputs = trial.trainer.splits.train.inputs
    trial.reset(dict(config))
    assert trial.trainer.splits.train.inputs.data_ptr() == inputs.data_ptr()
    trial.stop()
