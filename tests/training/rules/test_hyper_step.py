"""The hyper-step: its gradient, its entropy, and how far it may go."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tune_stn.data.batches import Batch
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.space import Sample, Tunable
from tune_stn.tasks import Task
from tune_stn.training import Trainer
from tune_stn.training.objectives import validation_loss
from tune_stn.training.rules import get_rule

Stir = Callable[[SelfTuningModel], None]
TUNING = ("stn", "delta-stn")


def hyper_of(trainer: Trainer) -> Tunable:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper


def made(task: Task, algorithm: str, stir: Stir) -> tuple[Trainer, Batch]:
    trainer = Trainer(task, algorithm=algorithm)
    stir(trainer.model)
    trainer.model.train()
    return trainer, trainer.splits.train.take(torch.arange(8))


@pytest.mark.parametrize(("algorithm", "tune_scales"), list(product(TUNING, (True, False))))
def test_hyper_step_moves_the_hyperparameters_and_never_the_weights(
    make_task: Any, stir: Stir, algorithm: str, tune_scales: bool
) -> None:
    trainer, batch = made(make_task("batch-norm", tune_scales=tune_scales), algorithm, stir)
    network = {name: tensor.clone() for name, tensor in trainer.model.network.state_dict().items()}
    hyper = hyper_of(trainer)
    raw, rho = hyper.raw.detach().clone(), hyper.rho.detach().clone()
    trainer.rule.hyper_step(batch)
    after = trainer.model.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in network.items())  # running statistics too
    assert all(parameter.grad is None for parameter in trainer.model.network.parameters())
    assert (hyper.raw != raw).all()
    assert bool((hyper.rho != rho).all()) is tune_scales
    assert trainer.model.training


@pytest.mark.parametrize(
    ("algorithm", "tune_scales", "size"), list(product(TUNING, (True, False), ("full", "gate", 2)))
)
@pytest.mark.usefixtures("double")
def test_hyper_gradient_is_that_of_the_validation_loss_through_the_response(
    make_task: Any, stir: Stir, algorithm: str, tune_scales: bool, size: Any
) -> None:
    """Central differences with respect to raw and rho; the weights, and the centre of the offset, stay."""
    task = make_task("cnn", tune_scales=tune_scales, entropy_weight=0.0, response=size, hyper_clip_norm=None)
    trainer, batch = made(task, algorithm, stir)
    hyper = hyper_of(trainer)
    hyper.rho.data.copy_(torch.tensor([-1.0, 0.2, 0.5]))
    raw, rho = hyper.raw.detach().clone(), hyper.rho.detach().clone()
    torch.manual_seed(3)
    noise = torch.randn(len(batch), 3)

    @torch.no_grad()
    def loss(shift: Tensor, widening: Tensor) -> float:
        moved = (raw + shift)[None]
        if tune_scales:
            moved = moved + F.softplus(rho + widening) * noise
        trainer.model.eval()
        from_start = (moved - hyper.origin + trainer.task.training.response_origin) / trainer.model.shrink
        sample = Sample(hyper.values(moved), moved - raw if get_rule(algorithm).centred else from_start)
        with trainer.model.using(sample):
            value = float(F.cross_entropy(trainer.model(batch.inputs), batch.targets))
        trainer.model.train()
        return value

    def differences(of_scale: bool) -> Tensor:
        step, none = 1e-5, torch.zeros(3)
        moves = [step * unit for unit in torch.eye(3)]
        pairs = [(loss(none, m), loss(none, -m)) if of_scale else (loss(m, none), loss(-m, none)) for m in moves]
        return torch.tensor([(up - down) / (2 * step) for up, down in pairs])

    expected = differences(False), differences(True)
    torch.manual_seed(3)
    trainer.rule.hyper_step(batch)
    assert hyper.raw.grad is not None
    assert expected[0].abs().min() > 1e-4
    assert torch.allclose(hyper.raw.grad, expected[0], rtol=1e-6, atol=1e-9)
    if tune_scales:
        assert hyper.rho.grad is not None
        assert expected[1].abs().min() > 1e-5
        assert torch.allclose(hyper.rho.grad, expected[1], rtol=1e-6, atol=1e-9)


def test_hyper_step_descends(make_task: Any, stir: Stir) -> None:
    task = make_task("mlp", tune_scales=False, hyper_optimizer="SGD", hyper_lr=1e-2)
    trainer, batch = made(task, "stn", stir)
    losses = []
    for _ in range(20):
        losses.append(float(validation_loss(trainer.forward, batch, trainer.model.mean_sample()).detach()))
        trainer.rule.hyper_step(batch)
    assert all(later < earlier for earlier, later in pairwise(losses))


@pytest.mark.parametrize("algorithm", TUNING)
@pytest.mark.usefixtures("double")
def test_entropy_is_a_bonus_that_raises_the_scales(make_task: Any, stir: Stir, algorithm: str) -> None:
    """Gradient of -tau H: -tau sigmoid(rho) / sigma; nothing for raw."""
    gradients = []
    for weight in (0.0, 0.5):
        trainer, batch = made(make_task(entropy_weight=weight, hyper_clip_norm=None), algorithm, stir)
        torch.manual_seed(1)
        trainer.rule.hyper_step(batch)
        gradients.append([parameter.grad for parameter in trainer.stepper.parameters("hyper")])
    start = hyper_of(Trainer(trainer.task, algorithm=algorithm))
    expected = -0.5 * torch.sigmoid(start.rho) / start.scale()
    assert torch.allclose(gradients[1][0], gradients[0][0], rtol=1e-12)
    assert torch.allclose(gradients[1][1] - gradients[0][1], expected, rtol=1e-9)


def test_large_entropy_weight_makes_scales_grow(make_task: Any) -> None:
    task = make_task(train_steps=1, entropy_weight=10.0)
    trainer = Trainer(task, algorithm="stn")
    scales = [trainer.run_epoch()["scale/dropout"] for _ in range(3)]
    assert 0.5 < scales[0] < scales[1] < scales[2]


def test_scales_stay_where_they_are_not_tuned(make_task: Any) -> None:
    trainer = Trainer(make_task(tune_scales=False, entropy_weight=10.0), algorithm="stn")
    assert trainer.run_epoch()["scale/decay"] == pytest.approx(0.5)


def test_hyper_clip_norm_bounds_the_hyper_gradient(make_task: Any, stir: Stir) -> None:
    norms = []
    for clip_norm in (None, 1e-3):
        trainer, batch = made(make_task(hyper_clip_norm=clip_norm), "stn", stir)
        torch.manual_seed(0)
        trainer.rule.hyper_step(batch)
        norms.append(
            float(
                torch.stack([p.grad.norm() for p in trainer.stepper.parameters("hyper") if p.grad is not None]).norm()
            )
        )
    assert norms[0] > 2e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


# How far ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", TUNING)
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.usefixtures("double")
def test_relative_steps_move_all_values_by_the_same_share_of_their_domains(
    make_task: Any, stir: Stir, algorithm: str, relative: bool
) -> None:
    """RMSprop's first step is 10 lr long in every raw coordinate: a quarter of that in the middle of a domain."""
    start = {"dropout": 0.45, "input_scale": 0.1, "decay": 1e-2}
    task = make_task(start=start, hyper_lr=1e-5, entropy_weight=0.0, relative_hyper_lr=relative)
    trainer, batch = made(task, algorithm, stir)
    hyper = hyper_of(trainer)

    def shares() -> Tensor:
        values = hyper.mean_values()
        return torch.tensor([values["dropout"] / 0.9, values["input_scale"], 1.2 + math.log10(values["decay"]) / 5])

    before, rho = shares(), hyper.rho.detach().clone()
    assert before.tolist() == pytest.approx([0.5, 0.1, 0.8])
    trainer.rule.hyper_step(batch)
    slopes = torch.full((3,), 0.25) if relative else before * (1 - before)
    assert (shares() - before).abs().tolist() == pytest.approx((1e-4 * slopes).tolist(), rel=1e-3)
    assert (hyper.rho - rho).abs().tolist() == pytest.approx([1e-4] * 3, rel=1e-3)  # scales move as ever


@pytest.mark.parametrize("algorithm", TUNING)
@pytest.mark.parametrize("tune_scales", [True, False])
def test_hyperparameters_stay_where_their_domains_are(
    make_task: Any, stir: Stir, algorithm: str, tune_scales: bool
) -> None:
    """A step that would lead far out ends at the raw coordinate of an end, and at a scale of 0.01 or 2."""
    task = make_task("cnn", hyper_lr=100.0, tune_scales=tune_scales)
    trainer, batch = made(task, algorithm, stir)
    hyper = hyper_of(trainer)
    torch.manual_seed(0)
    trainer.rule.hyper_step(batch)
    ends = [{domain.inverse(domain.nearest(far)) for far in (-1.0, 2.0)} for domain in hyper.space.values()]
    assert all(
        any(raw == pytest.approx(end) for end in both) for raw, both in zip(hyper.raw.tolist(), ends, strict=True)
    )
    expected = (0.01, 2.0) if tune_scales else (0.5,)
    assert all(any(scale == pytest.approx(end) for end in expected) for scale in hyper.scale().tolist())
    for _ in range(3):
        trainer.rule.hyper_step(batch)
        for raw, both in zip(hyper.raw.tolist(), ends, strict=True):
            assert min(both) - 1e-5 < raw < max(both) + 1e-5
        assert all(0.0099 < scale < 2.01 for scale in hyper.scale().tolist())
        assert all(hyper.space[name].contains(value) for name, value in hyper.mean_values().items())


def test_a_start_beyond_those_bounds_is_kept(make_task: Any, stir: Stir) -> None:
    """Between the end of a domain and the coordinate that stands for it; and a scale of 3."""
    start = {"dropout": 1e-5, "input_scale": 0.1, "decay": 1e-3}
    trainer, batch = made(make_task(start=start, scale=3.0, hyper_lr=1e-9), "stn", stir)
    trainer.rule.hyper_step(batch)
    hyper = hyper_of(trainer)
    assert hyper.mean_values() == pytest.approx(start, rel=1e-3)
    assert hyper.scale().tolist() == pytest.approx([3.0] * 3)
