"""A small classification task with every kind of hyperparameter, and variants of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.augment import InputScale
from tune_stn.data.splits import Split, Splits
from tune_stn.nn.penalties import WeightDecay
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.space import LogUniform, SearchSpace, Uniform
from tune_stn.tasks import Task, Training, accuracy
from tune_stn.training import Trainer

MakeTask = Callable[..., Task]
FEATURES, CLASSES = 36, 3


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Dropout(), nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, CLASSES))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Dropout(),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, CLASSES),
    )


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES))


# Network -> (how it is made, path of the dropout that reads a hyperparameter).
NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (_mlp, "0"),
    "cnn": (_cnn, "1"),
    "batch-norm": (_normed, "3"),
}


def _data(seed: int) -> Splits:
    generator = torch.Generator().manual_seed(seed)

    def split(examples: int) -> Split:
        return Split(
            torch.randn(examples, FEATURES, generator=generator),
            torch.randint(CLASSES, (examples,), generator=generator),
        )

    return Splits(train=split(24), valid=split(16), test=split(20))


@pytest.fixture
def double() -> Iterator[None]:
    """Everything made inside the test is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def make_task() -> MakeTask:
    """A factory: 36 features, 3 classes, 3 batches of 8 an epoch; keywords are fields of `Task` or `Training`."""

    def make(network: str = "mlp", **overrides: Any) -> Task:
        model, dropout = NETWORKS[network]
        training_names = {f.name for f in fields(Training)}
        training = {
            "batch_size": 8,
            "lr": 0.05,
            "optimizer_args": {"momentum": 0.9},
            "hyper_lr": 0.05,
            "train_steps": 2,
            "warmup_epochs": 0,
            "scale": 0.5,
            "test_every": 1,  # so that whoever compares reports compares these figures, too
        } | {k: v for k, v in overrides.items() if k in training_names}
        if training.get("optimizer", "SGD") != "SGD" and "optimizer_args" not in overrides:
            training["optimizer_args"] = {}
        task: dict[str, Any] = {
            "name": "tiny",
            "model": model,
            "data": _data,
            "space": SearchSpace(
                {"dropout": Uniform(0.0, 0.9), "input_scale": Uniform(0.0, 1.0), "decay": LogUniform(1e-6, 1e-1)}
            ),
            "start": {"dropout": 0.2, "input_scale": 0.1, "decay": 1e-3},
            "dropout": {dropout: "dropout"},
            "augmentations": (InputScale("input_scale"),),
            "penalties": (WeightDecay("decay"),),
            "metrics": {"accuracy": accuracy},
        }
        return Task(
            **{**task, **{k: v for k, v in overrides.items() if k not in training_names}},
            training=Training(**training),
        )

    return make


@pytest.fixture
def differences() -> Callable[[Trainer, Trainer], list[str]]:
    """Where two trainers' states differ in a single bit, as paths; wall-clock aside."""

    def flat(state: Any, path: str = "") -> dict[str, Any]:
        """A nested state as path -> leaf."""
        if isinstance(state, Mapping):
            return {k: v for key, value in state.items() for k, v in flat(value, f"{path}/{key}").items()}
        if isinstance(state, (list, tuple)):
            return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{path}/{i}").items()}
        return {path: state}

    def differences(one: Trainer, other: Trainer) -> list[str]:
        a, b = flat(one.state_dict()), flat(other.state_dict())
        missing = sorted(a.keys() ^ b.keys())
        wrong = []
        for key in a.keys() & b.keys():
            equal = torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key]
            if not equal and key != "/device_time_s":
                wrong.append(key)
        return missing + sorted(wrong)

    return differences


@pytest.fixture
def stir() -> Callable[[SelfTuningModel], None]:
    """Moves the response parameters off their start, where the gates are zero and the response is none."""

    def stir(model: SelfTuningModel) -> None:
        generator = torch.Generator().manual_seed(99)
        for parameter in model.response_parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))

    return stir
