"""The objectives and their steps: which loss moves what, and whether its gradient is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.augment import InputScale, LabelSmoothing, Mixup
from tune_stn.data.batches import Batch
from tune_stn.nn.penalties import ActivationNorm, WeightDecay
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.space import LogUniform, Sample, SearchSpace, Uniform
from tune_stn.tasks import Task, accuracy
from tune_stn.training import Trainer
from tune_stn.training.objectives import augmented, training_loss, validation_loss

Stir = Callable[[SelfTuningModel], None]
TUNING = ("stn", "delta-stn")


def snapshot(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def same(parameters: list[nn.Parameter], before: list[Tensor]) -> bool:
    return all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))


def made(task: Task, algorithm: str, stir: Stir) -> tuple[Trainer, Batch]:
    trainer = Trainer(task, algorithm=algorithm)
    stir(trainer.model)
    trainer.model.train()
    return trainer, trainer.splits.train.take(torch.arange(8))


@pytest.mark.parametrize("algorithm", TUNING)
def test_training_moves_the_weights_and_never_the_hyperparameters(make_task: Any, stir: Stir, algorithm: str) -> None:
    trainer, batch = made(make_task(), algorithm, stir)
    groups = [trainer.stepper.parameters(name) for name in ("base", "response", "hyper")]
    base, response, hyper = (snapshot(group) for group in groups)
    trainer.rule.train_step(batch)
    assert same(groups[2], hyper)
    assert all(parameter.grad is None for parameter in groups[2])
    assert not any(torch.equal(now, then) for now, then in zip(groups[0], base, strict=True))
    assert not any(torch.equal(now, then) for now, then in zip(groups[1], response, strict=True))


EVERY_READER: dict[str, Any] = {
    "space": SearchSpace(
        {"dropout": Uniform(0, 0.9), "norm": Uniform(0, 1), "smoothing": Uniform(0, 0.5), "decay": LogUniform(1e-6, 1)}
    ),
    "start": {"dropout": 0.2, "norm": 0.5, "smoothing": 0.3, "decay": 1e-3},
    "augmentations": (InputScale("norm"),),
    "label_augmentations": (LabelSmoothing("smoothing", classes=3), Mixup("norm", classes=3)),
    "penalties": (WeightDecay("decay"), ActivationNorm("norm", "2")),
}


def test_training_loss_has_no_path_to_the_hyperparameters(make_task: Any, stir: Stir) -> None:
    """Also if one asks for it: augmentations, dropout and penalties read detached values."""
    trainer, batch = made(make_task(**EVERY_READER), "stn", stir)
    loss = training_loss(trainer.forward, batch, trainer.model.perturbed_sample(len(batch)))
    hyper, base = trainer.stepper.parameters("hyper"), trainer.stepper.parameters("base")
    assert torch.autograd.grad(loss, hyper, allow_unused=True, retain_graph=True) == (None, None)
    assert any(g is not None for g in torch.autograd.grad(loss, base, allow_unused=True))


@pytest.mark.parametrize("algorithm", ["fixed", *TUNING])
def test_targets_are_augmented_in_training_alone(make_task: Any, algorithm: str) -> None:
    """There they are probabilities; hyper-steps, evaluation and metrics see the classes themselves."""
    seen: dict[str, list[Tensor]] = {"training": [], "evaluation": [], "metric": []}
    trainer: Trainer | None = None

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if trainer is not None:
            seen["training" if trainer.model.training else "evaluation"].append(targets)
        return F.cross_entropy(outputs, targets)

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        seen["metric"].append(targets)
        return accuracy(outputs, targets)

    task = make_task(**EVERY_READER, loss=loss, metrics={"accuracy": metric}, train_steps=1)
    trainer = Trainer(task, algorithm=algorithm)
    trainer.run_epoch()
    assert len(seen["training"]) == (6 if algorithm == "delta-stn" else 3)
    assert len(seen["evaluation"]) == (2 if algorithm == "fixed" else 5)
    assert {targets.dtype for targets in seen["evaluation"] + seen["metric"]} == {torch.int64}
    for targets in seen["training"]:
        assert targets.shape == (8, 3)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert (targets > 0).all()


def test_augmentations_come_in_their_order(make_task: Any) -> None:
    """Inputs first, then what takes inputs and targets; each sees what the one before has made."""
    order: list[str] = []

    @dataclass(frozen=True)
    class Inputs:
        name: str
        names: tuple[str, ...] = ("dropout",)

        def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
            order.append(self.name)
            return inputs + 1

    @dataclass(frozen=True)
    class Labels(Inputs):
        def __call__(self, inputs: Tensor, targets: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            order.append(self.name)
            return inputs * 2, targets + 1

    task = make_task(
        augmentations=(Inputs("one"), Inputs("two")),
        label_augmentations=(Labels("three"), Labels("four")),
        penalties=(WeightDecay("decay"), WeightDecay("input_scale")),
    )
    trainer = Trainer(make_task(), algorithm="fixed")
    batch = trainer.splits.train.take(torch.arange(8))
    after = augmented(task, batch, trainer.model.mean_sample())
    assert order == ["one", "two", "three", "four"]
    assert torch.allclose(after.inputs, (batch.inputs + 2) * 4)
    assert torch.equal(after.targets, batch.targets + 2)


@pytest.mark.parametrize("algorithm", TUNING)
def test_gradients_do_not_leak_into_the_next_step(make_task: Any, stir: Stir, algorithm: str) -> None:
    """A step after others moves what it moves as if they had left no gradient behind."""
    steps = []
    for clean in (True, False):
        trainer, batch = made(make_task(optimizer_args={}), algorithm, stir)
        torch.manual_seed(5)
        trainer.rule.hyper_step(batch)
        trainer.rule.train_step(batch)
        trainer.rule.hyper_step(batch)
        if clean:
            trainer.model.zero_grad(set_to_none=True)
        else:
            for parameter in trainer.model.parameters():
                parameter.grad = torch.full_like(parameter, 1e6)
        trainer.rule.train_step(batch)
        trainer.rule.hyper_step(batch)
        steps.append(snapshot(list(trainer.model.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


@pytest.mark.parametrize("algorithm", ["fixed", *TUNING])
def test_clip_norm_bounds_the_gradient_of_the_weights(make_task: Any, algorithm: str) -> None:
    norms = []
    for clip_norm in (None, 1e-3):
        trainer = Trainer(make_task(clip_norm=clip_norm), algorithm=algorithm)
        batch = trainer.splits.train.take(torch.arange(8))
        torch.manual_seed(0)
        trainer.rule.train_step(batch)
        both = algorithm == "stn"  # one loss, one step: clipped together
        names = [("base", "response")] if both else [("base",), ("response",)]
        groups = [trainer.stepper.parameters(*group) for group in names]
        norms.append([gradient_norm(group) for group in groups if group])
    assert min(norms[0]) > 2e-3
    assert norms[1] == pytest.approx([1e-3] * len(norms[1]), rel=1e-3)


@pytest.mark.parametrize("algorithm", TUNING)
def test_validation_loss_has_no_dropout_augmentation_or_penalty(make_task: Any, stir: Stir, algorithm: str) -> None:
    """At strong regularisation it is the loss of the bare network with merged weights."""
    task = make_task(start={"dropout": 0.85, "input_scale": 0.9, "decay": 0.09})
    trainer, batch = made(task, algorithm, stir)
    before = torch.get_rng_state()
    loss = validation_loss(trainer.forward, batch, trainer.model.mean_sample())
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn
    with trainer.model.using(trainer.model.mean_sample()):
        trainer.model.eval()
        expected = F.cross_entropy(trainer.model(batch.inputs), batch.targets)
        trainer.model.train()
    assert torch.equal(loss, expected)
    torch.manual_seed(0)
    draws = [training_loss(trainer.forward, batch, trainer.model.mean_sample()).item() for _ in range(30)]
    assert np.mean(draws) > loss + 0.1  # they are there in training


def test_training_loss_averages_penalties_over_the_rows(make_task: Any, stir: Stir) -> None:
    trainer, batch = made(make_task(response="full"), "stn", stir)
    sample = trainer.model.perturbed_sample(len(batch))
    outputs = torch.randn(len(batch), 3)
    decay = trainer.task.penalties[0]
    one_by_one = []
    for row in range(len(batch)):
        assert sample.response_input is not None
        single = Sample({k: v[row : row + 1] for k, v in sample.values.items()}, sample.response_input[row : row + 1])
        one_by_one.append(decay(trainer.model.network, single, {}))
    expected = F.cross_entropy(outputs, batch.targets) + torch.cat(one_by_one).mean()
    trainer.forward.observed = lambda batch, sample: (outputs, {})  # type: ignore[method-assign]
    loss = training_loss(trainer.forward, batch, sample)
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_frozen_layers_are_in_no_optimizer(make_task: Any) -> None:
    def model() -> nn.Module:
        network = nn.Sequential(nn.Linear(36, 8), nn.Dropout(), nn.Linear(8, 3))
        network[0].requires_grad_(False)
        return network

    trainer = Trainer(make_task(model=model, dropout={"1": "dropout"}), algorithm="delta-stn")
    frozen = trainer.model.network.get_submodule("0").weight
    before = frozen.detach().clone()
    trainer.run_epoch()
    assert torch.equal(frozen, before)
    assert not frozen.requires_grad
    held = [id(p) for o in trainer.stepper.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert id(frozen) not in held
    assert len(held) == len(set(held))


def test_model_without_any_response_cannot_be_tuned(make_task: Any) -> None:
    task = make_task(response={"1": None})
    for algorithm in TUNING:
        with pytest.raises(ValueError, match=r"no layer .* has a response.*1 \(no response asked for\)"):
            Trainer(task, algorithm=algorithm)
    Trainer(task, algorithm="fixed").run_epoch()
