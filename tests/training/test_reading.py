"""What nothing reads is refused, whatever it is bound to; and looking leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.augment import Cutout
from tune_stn.data.splits import Split, Splits
from tune_stn.nn.penalties import ActivationNorm, WeightDecay
from tune_stn.space import Integer, SearchSpace, Uniform
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer
from tune_stn.training.forward import Forward
from tune_stn.training.network import make_network
from tune_stn.training.reading import check_read, warn_of_draws
from tune_stn.training.rules import RULES


class Leftover(nn.Module):
    """A dropout module that is made, and a functional one that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.dropout = nn.Linear(4, 3), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5, self.training)


class OneLayer(nn.Module):
    """An LSTM of one layer has no place for its dropout."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, num_layers=layers, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.lstm(x[:, None].expand(-1, 2, -1))[0][:, -1])
        return outputs


def task_of(model: Any, **more: Any) -> Task:
    def data(seed: int) -> Splits:
        x, y = torch.randn(30, 4), torch.randint(3, (30,))
        return Splits(*(Split(a, b) for a, b in zip(x.split(10), y.split(10), strict=True)))

    space = SearchSpace({"rate": Uniform(0, 0.9)})
    return Task(name="mine", model=model, data=data, space=space, start={"rate": 0.1}, **more)


@pytest.mark.parametrize("algorithm", ["auto", "fixed", "stn", "delta-stn"])
def test_a_module_that_is_never_called_is_told(algorithm: str) -> None:
    with pytest.raises(
        ValueError, match=r"'rate' of task 'mine' was read by nothing .*: it is bound to 'dropout', which"
    ):
        Trainer(task_of(Leftover, dropout={"dropout": "rate"}), algorithm=algorithm)


def test_the_dropout_of_an_lstm_of_one_layer_is_told() -> None:
    with pytest.raises(ValueError, match="bound to 'lstm', which did not use it"):
        Trainer(task_of(OneLayer, dropout={"lstm": "rate"}), algorithm="stn")
    Trainer(task_of(lambda: OneLayer(2), dropout={"lstm": "rate"}), algorithm="stn")


def test_a_penalty_on_nothing_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"only='enocder.\*'\) matches no weight of the network; it has lstm.weight_ih_l0"
    ):
        Trainer(task_of(OneLayer, penalties=(WeightDecay("rate", only="enocder.*"),)), algorithm="stn")


class Backbone(nn.Module):
    """What fine-tuning has below its head; its dropouts are a module and a number."""

    def __init__(self, *, trains: bool) -> None:
        super().__init__()
        self.fc, self.drop, self.p, self.trains = nn.Linear(4, 8), nn.Dropout(), 0.1, trains

    def train(self, mode: bool = True) -> Backbone:
        return super().train(mode and self.trains)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.drop(torch.relu(self.fc(x))), self.p, self.training)


class FineTuned(nn.Module):
    def __init__(self, *, frozen: bool = True, no_grad: bool = False, trains: bool = False) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(trains=trains), nn.Linear(8, 3)
        self.backbone.requires_grad_(not frozen)
        self.no_grad = no_grad

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.no_grad):
            features = self.backbone(x)
        outputs: Tensor = self.head(features)
        return outputs


@pytest.mark.parametrize("algorithm", ["auto", "fixed", "stn"])
@pytest.mark.parametrize(
    ("model", "reader", "message"),
    [
        ({}, {"dropout": {"backbone.drop": "rate"}}, r"read by nothing .* bound to 'backbone\.drop', which did not"),
        (
            {},
            {"dropout": {"backbone.p": "rate"}},
            r"no weight would train otherwise .* bound to 'backbone\.p': .* frozen",
        ),
        ({"frozen": False}, {"dropout": {"backbone.p": "rate"}}, r"bound to 'backbone\.p': .* in evaluation mode"),
        (
            {"trains": True},
            {"penalties": (WeightDecay("rate", only="backbone"),)},
            "train otherwise at another value: ",
        ),
        (
            {"trains": True, "frozen": False, "no_grad": True},
            {"penalties": (ActivationNorm("rate", "backbone"),)},
            r"at another value: .* under torch\.no_grad\(\)\. Let that part train",
        ),
    ],
)
def test_what_has_no_effect_is_told(model: Any, reader: Any, message: str, algorithm: str) -> None:
    task = task_of(lambda: FineTuned(**model), **reader)
    if "dropout" in reader:
        task = replace(task, space=SearchSpace(task.space, per_batch=["rate"]))
    with pytest.raises(ValueError, match=f"hyperparameter 'rate' of task 'mine' was .*{message}"):
        Trainer(task, algorithm=algorithm)


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("reader", [{"dropout": {"*": "rate"}}, {"penalties": (WeightDecay("rate"),)}])
def test_noise_below_a_head_that_trains_has_an_effect(reader: Any, no_grad: bool) -> None:
    Trainer(task_of(lambda: FineTuned(trains=True, no_grad=no_grad), **reader), algorithm="auto")


def test_what_others_switch_off_at_the_start_values_has_an_effect() -> None:
    task = Task(
        name="mine",
        model=lambda: nn.Sequential(nn.Flatten(), FineTuned(trains=True)),
        data=lambda seed: Splits(*(Split(torch.randn(10, 1, 2, 2), torch.randint(3, (10,))) for _ in range(3))),
        space=SearchSpace({"holes": Integer(0, 2), "size": Integer(0, 3)}),
        start={"holes": 0, "size": 1},
        augmentations=(Cutout("holes", "size", max_holes=2),),
    )
    Trainer(task, algorithm="auto")


@pytest.mark.parametrize("algorithm", ["fixed", "stn"])
@pytest.mark.parametrize("network", ["batch-norm", "text"])
def test_looking_leaves_no_trace(make_task: Any, network: str, algorithm: str) -> None:
    text = {"hidden": 6, "vocabulary": 40, "train_tokens": 900, "window": 8, "batch_size": 5}
    task = get_task("text-lstm", **text) if network == "text" else make_task(network)
    net = make_network(task, RULES[algorithm], start=task.start, seed=0)
    splits, before, random = task.data(0), {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    batch = next(splits.train.batches(task.training.batch_size, torch.Generator()))
    for training in (True, False):
        for look in (check_read, warn_of_draws):
            look(task, Forward(task, net.train(training)), batch)
        assert net.training == training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class AlwaysOn(nn.Module):
    """The classic mistake: `training` is True by default."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.noise = nn.Linear(4, 4), AlwaysOn()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.noise(self.fc(x))
        return outputs


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.fc = nn.Dropout(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(self.drop(x)), 0.1)


def nested() -> nn.Module:
    return nn.Sequential(nn.Dropout(), Block(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("model", "drop", "where"), [(nested, "0", r"'1\.noise'"), (Root, "drop", "its own forward pass")]
)
@pytest.mark.parametrize("algorithm", ["fixed", "auto"])
def test_dropout_in_evaluation_is_told(model: Any, drop: str, where: str, algorithm: str) -> None:
    with pytest.warns(UserWarning, match=rf"draws at random in evaluation, in {where}: two evaluations of it differ"):
        Trainer(task_of(model, dropout={drop: "rate"}), algorithm=algorithm)
