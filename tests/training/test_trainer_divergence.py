"""A run that diverges: what it says, and how it goes back and on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from tune_stn.space import Normal, SearchSpace, Tunable
from tune_stn.training import Trainer

ALGORITHMS = ("fixed", "stn", "delta-stn")
TUNING = ("stn", "delta-stn")


def hyper_of(trainer: Trainer) -> Tunable:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("restarts", [0, 1])
def test_divergence_is_said_and_never_raised(make_task: Any, algorithm: str, network: str, restarts: int) -> None:
    trainer = Trainer(make_task(network, lr=1e25, restarts=restarts), algorithm=algorithm)
    reports = [trainer.run_epoch() for _ in range(2)]
    assert reports[-1]["val_loss"] == math.inf
    assert trainer.diverged is not None
    assert "became" in trainer.diverged
    assert list(reports[0]) == list(reports[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_healthy_run_has_not_diverged(make_task: Any, algorithm: str) -> None:
    trainer = Trainer(make_task(), algorithm=algorithm)
    assert math.isfinite(trainer.run_epoch()["val_loss"])
    assert trainer.diverged is None


def test_divergence_in_training_alone_is_found(make_task: Any) -> None:
    """Evaluation would not show it: the penalty is infinite, the weights are not."""

    class Infinite:
        names, paths = ("dropout",), ()

        def __call__(self, network: nn.Module, sample: Any, activations: Any) -> Tensor:
            return sample["dropout"] * math.inf

    task = make_task(restarts=0)
    trainer = Trainer(replace(task, penalties=(*task.penalties, Infinite())), algorithm="fixed")
    report = trainer.run_epoch()
    assert report["val_loss"] == math.inf
    assert trainer.diverged == "the training loss became inf in epoch 1"


@pytest.mark.parametrize("algorithm", TUNING)
def test_diverged_hyperparameter_is_named(make_task: Any, algorithm: str) -> None:
    """A value without bounds runs away."""
    task = make_task(restarts=0)
    space = SearchSpace({**task.space, "free": Normal()})

    class Free:
        names, paths = ("free",), ()

        def __call__(self, network: nn.Module, sample: Any, activations: Any) -> Tensor:
            return sample["free"] * 0

    task = replace(task, space=space, start={**task.start, "free": 0.0}, penalties=(*task.penalties, Free()))
    trainer = Trainer(task, algorithm=algorithm)
    hyper_of(trainer).raw.data[3] = math.inf
    trainer.run_epoch()
    assert trainer.diverged is not None
    named = trainer.diverged.partition("not finite any more: ")[2]
    assert "free" in named.split(", ")


def test_divergence_is_part_of_the_state(make_task: Any) -> None:
    trainer = Trainer(make_task(lr=1e25, restarts=0), algorithm="fixed")
    for _ in range(2):
        trainer.run_epoch()
    again = Trainer(make_task(lr=1e25, restarts=0), algorithm="fixed")
    again.load_state_dict(trainer.state_dict())
    assert again.diverged == trainer.diverged is not None
