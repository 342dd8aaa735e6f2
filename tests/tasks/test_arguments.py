"""What somebody new gets wrong first is told in one line that names the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.splits import Split, Splits
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task, Training, get_task
from tune_stn.tasks.arguments import check_settings
from tune_stn.training import Trainer


def data(seed: int) -> Splits:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
    return Splits(*(Split(part, (part[:, 0] > 0).long()) for part in x.split(10)))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2))


TASK: dict[str, Any] = {
    "name": "mine",
    "model": net,
    "data": data,
    "space": SearchSpace({"rate": Uniform(0, 0.9)}),
    "start": {"rate": 0.1},
    "dropout": {"1": "rate"},
}
ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    (
        {"model": net()},
        r"model of task 'mine' is a Sequential: give a function that makes one.* model=lambda: MyNetwork",
    ),
    (
        {"model": lambda width: net()},
        r"model of task 'mine' is called as model\(\), which its signature does not allow",
    ),
    ({"data": data(0)}, r"data of task 'mine' is a Splits: give a function .* data=lambda seed: Splits"),
    ({"data": lambda: data(0)}, r"data of task 'mine' is called as data\(seed\), which its signature does not allow"),
    ({"space": {"rate": Uniform(0, 0.9)}}, r"space of task 'mine' is a dict: give SearchSpace\("),
    ({"training": {"epochs": 3}}, r"training of task 'mine' is a dict: give Training\("),
    ({"start": 0.1}, "start of task 'mine' is a float: give a mapping"),
    ({"dropout": ["1"]}, "dropout of task 'mine' is a list: give a mapping from path"),
    (
        {"loss": nn.CrossEntropyLoss},
        r"loss of task 'mine' is the class CrossEntropyLoss: give an instance, CrossEntropy",
    ),
    ({"loss": "mse"}, "loss of task 'mine' is a str: give a function"),
    ({"metrics": [torch.mean]}, "metrics of task 'mine' is a list: give a mapping from name"),
    ({"metrics": {"f1": 3}}, r"metrics of task 'mine' has a int for 'f1': give a function of \(outputs, targets\)"),
    ({"metrics": {3: torch.mean}}, "metrics of task 'mine' has the name 3: give a text"),
    ({"recurrent": "no"}, "recurrent of task 'mine' is a str: give True or False"),
    (
        {"penalties": WeightDecay("rate")},
        r"penalties of task 'mine' is a WeightDecay: give a tuple; .* comma: \(thing,\)",
    ),
    (
        {"augmentations": (torch.nn.Flatten(),)},
        "augmentations of task 'mine' has a Flatten in it, which reads no hyper",
    ),
]


@pytest.mark.parametrize(("change", "message"), ARGUMENTS)
def test_arguments_of_another_kind(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Task(**{**TASK, **change})


def test_what_is_known_only_when_it_is_called() -> None:
    def trainer(**change: Any) -> Trainer:
        return Trainer(Task(**{**TASK, **change}), algorithm="stn")

    with pytest.raises(ValueError, match=r"data of task 'mine' gave a tuple: give Splits\(train, valid, test\)"):
        trainer(data=lambda seed: (data(seed).train, data(seed).valid, data(seed).test))
    with pytest.raises(ValueError, match=r"loss of task 'mine' gave a tensor of shape \(10,\) for a batch"):
        trainer(loss=nn.CrossEntropyLoss(reduction="none"))


def test_lists_of_readers_do_as_well_as_tuples() -> None:
    task = Task(**{**TASK, "penalties": [WeightDecay("rate")], "augmentations": []})
    assert task.penalties == (WeightDecay("rate"),)
    assert task.augmentations == ()


def test_numbers_of_numpy_are_the_numbers_that_they_are() -> None:
    row = pd.DataFrame({"epochs": [5], "lr": [0.5], "keep_best": [True]}).iloc[0]
    training = Training(epochs=row["epochs"], lr=np.float32(0.5), keep_best=np.bool_(row["keep_best"]))
    assert training == Training(epochs=5, lr=0.5, keep_best=True)
    assert [type(getattr(training, name)) for name in ("epochs", "lr", "keep_best")] == [int, float, bool]
    assert get_task("digits-mlp", epochs=np.int64(7)).training.epochs == 7


@pytest.mark.parametrize(("given", "meant"), [("sgd", "SGD"), ("adamw", "AdamW"), ("RMSProp", "RMSprop")])
def test_a_name_in_the_wrong_case_is_suggested(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer='{given}': accepted is .*did you mean '{meant}'"):
        Training(optimizer=given)


def mine(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().mean()


def test_what_is_right_is_accepted() -> None:
    for change in (
        {"model": nn.Identity},
        {"data": lambda *seeds: data(*seeds)},
        {"loss": nn.CrossEntropyLoss()},
        {"loss": mine},
    ):
        assert Task(**{**TASK, **change}).name == "mine"


def sized(
    *, hidden: int = 3, rate: float | None = None, fast: bool = False, folder: str | None = None, any: Any = 1
) -> None:
    """What settings are said to be."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": "abc"}, "hidden='abc': accepted is an integer"),
        ({"hidden": 300.0}, "hidden=300.0: accepted is an integer"),
        ({"hidden": True}, "hidden=True: accepted is an integer"),
        ({"hidden": None}, "hidden=None: accepted is an integer"),
        ({"rate": "1"}, "rate='1': accepted is a number or none"),
        ({"fast": 1}, "fast=1: accepted is true or false"),
        ({"folder": 3}, "folder=3: accepted is a text or none"),
    ],
)
def test_settings_of_another_kind_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_settings(sized, given)


def test_settings_of_the_right_kind_are_taken_and_of_numpy_made_plain() -> None:
    given = {"hidden": np.int64(3), "rate": 1, "fast": True, "folder": Path("here"), "any": [1]}
    found = check_settings(sized, given)
    assert found == given
    assert type(found["hidden"]) is int
    assert check_settings(sized, {"rate": None, "folder": None}) == {"rate": None, "folder": None}
    assert check_settings(lambda hidden: None, {"hidden": "abc"}) == {"hidden": "abc"}
