"""The elementary steps: which loss moves what, and whether its gradient is right."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.splits import Split
from tune_stn.nn.model import ORIGIN
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.space import Sample, Tunable
from tune_stn.tasks import Task
from tune_stn.training import Trainer
from tune_stn.training.learner import Learner
from tune_stn.training.rules import get_rule

Stir = Callable[[SelfTuningModel], None]
TUNING = ("stn", "delta-stn")


def snapshot(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def same(parameters: list[nn.Parameter], before: list[Tensor]) -> bool:
    return all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))


def hyper_of(learner: Learner) -> Tunable:
    assert isinstance(learner.model.hyper, Tunable)
    return learner.model.hyper


def made(task: Task, algorithm: str, stir: Stir) -> tuple[Trainer, Learner, Split]:
    trainer = Trainer(task, algorithm=algorithm)
    stir(trainer.model)
    trainer.model.train()
    return trainer, trainer.learner, trainer.splits.train.take(torch.arange(8))


@pytest.mark.parametrize("algorithm", TUNING)
def test_training_moves_the_weights_and_never_the_hyperparameters(make_task: Any, stir: Stir, algorithm: str) -> None:
    trainer, learner, batch = made(make_task(), algorithm, stir)
    base, response, hyper = snapshot(learner.base), snapshot(learner.response), snapshot(learner.hyper)
    trainer.rule.train_step(learner, batch, trainer.meter)
    assert same(learner.hyper, hyper)
    assert all(parameter.grad is None for parameter in learner.hyper)
    assert not any(torch.equal(now, then) for now, then in zip(learner.base, base, strict=True))
    assert not any(torch.equal(now, then) for now, then in zip(learner.response, response, strict=True))


@pytest.mark.parametrize(("algorithm", "tune_scales"), list(product(TUNING, (True, False))))
def test_hyper_step_moves_the_hyperparameters_and_never_the_weights(
    make_task: Any, stir: Stir, algorithm: str, tune_scales: bool
) -> None:
    trainer, learner, batch = made(make_task("batch-norm", tune_scales=tune_scales), algorithm, stir)
    network = {name: tensor.clone() for name, tensor in trainer.model.network.state_dict().items()}
    hyper = hyper_of(learner)
    raw, rho = hyper.raw.detach().clone(), hyper.rho.detach().clone()
    learner.hyper_step(batch)
    after = trainer.model.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in network.items())  # running statistics too
    assert all(parameter.grad is None for parameter in trainer.model.network.parameters())
    assert (hyper.raw != raw).all()
    assert bool((hyper.rho != rho).all()) is tune_scales
    assert trainer.model.training


def test_training_loss_has_no_path_to_the_hyperparameters(make_task: Any, stir: Stir) -> None:
    """Also if one asks for it: augmentation, dropout and penalties read detached values."""
    _, learner, batch = made(make_task(), "stn", stir)
    sample = learner.model.perturbed_sample(len(batch))
    loss = learner.training_loss(batch, sample)
    assert torch.autograd.grad(loss, learner.hyper, allow_unused=True, retain_graph=True) == (None, None)
    assert any(g is not None for g in torch.autograd.grad(loss, learner.base, allow_unused=True))


@pytest.mark.parametrize("algorithm", TUNING)
def test_gradients_do_not_leak_into_the_next_step(make_task: Any, stir: Stir, algorithm: str) -> None:
    """A step after others moves what it moves as if they had left no gradient behind."""
    steps = []
    for clean in (True, False):
        trainer, learner, batch = made(make_task(optimizer_args={}), algorithm, stir)
        torch.manual_seed(5)
        learner.hyper_step(batch)
        trainer.rule.train_step(learner, batch, trainer.meter)
        learner.hyper_step(batch)
        if clean:
            trainer.model.zero_grad(set_to_none=True)
        else:
            for parameter in trainer.model.parameters():
                parameter.grad = torch.full_like(parameter, 1e6)
        trainer.rule.train_step(learner, batch, trainer.meter)
        learner.hyper_step(batch)
        steps.append(snapshot(list(trainer.model.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))


@pytest.mark.parametrize(
    ("algorithm", "tune_scales", "size"), list(product(TUNING, (True, False), ("full", "gate", 2)))
)
@pytest.mark.usefixtures("double")
def test_hyper_gradient_is_that_of_the_validation_loss_through_the_response(
    make_task: Any, stir: Stir, algorithm: str, tune_scales: bool, size: Any
) -> None:
    """Central differences with respect to raw and rho; the weights, and the centre of the offset, stay."""
    task = make_task("cnn", tune_scales=tune_scales, entropy_weight=0.0, response=size, hyper_clip_norm=None)
    trainer, learner, batch = made(task, algorithm, stir)
    hyper = hyper_of(learner)
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
        from_start = (moved - hyper.origin + ORIGIN) / trainer.model.shrink
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
    learner.hyper_step(batch)
    assert hyper.raw.grad is not None
    assert expected[0].abs().min() > 1e-4
    assert torch.allclose(hyper.raw.grad, expected[0], rtol=1e-6, atol=1e-9)
    if tune_scales:
        assert hyper.rho.grad is not None
        assert expected[1].abs().min() > 1e-5
        assert torch.allclose(hyper.rho.grad, expected[1], rtol=1e-6, atol=1e-9)


def test_hyper_step_descends(make_task: Any, stir: Stir) -> None:
    task = make_task("mlp", tune_scales=False, hyper_optimizer="SGD", hyper_lr=1e-2)
    _, learner, batch = made(task, "stn", stir)
    losses = []
    for _ in range(20):
        losses.append(float(learner.validation_loss(batch, learner.model.mean_sample()).detach()))
        learner.hyper_step(batch)
    assert all(later < earlier for earlier, later in pairwise(losses))


@pytest.mark.parametrize("algorithm", TUNING)
@pytest.mark.usefixtures("double")
def test_entropy_is_a_bonus_that_raises_the_scales(make_task: Any, stir: Stir, algorithm: str) -> None:
    """Gradient of -tau H: -tau sigmoid(rho) / sigma; nothing for raw."""
    gradients = []
    for weight in (0.0, 0.5):
        trainer, learner, batch = made(make_task(entropy_weight=weight, hyper_clip_norm=None), algorithm, stir)
        torch.manual_seed(1)
        learner.hyper_step(batch)
        gradients.append((learner.hyper[0].grad, learner.hyper[1].grad))
    start = hyper_of(Trainer(trainer.task, algorithm=algorithm).learner)
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


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


@pytest.mark.parametrize("algorithm", ["fixed", *TUNING])
def test_clip_norm_bounds_the_gradient_of_the_weights(make_task: Any, algorithm: str) -> None:
    norms = []
    for clip_norm in (None, 1e-3):
        trainer = Trainer(make_task(clip_norm=clip_norm), algorithm=algorithm)
        batch = trainer.splits.train.take(torch.arange(8))
        torch.manual_seed(0)
        trainer.rule.train_step(trainer.learner, batch, trainer.meter)
        learner = trainer.learner
        both = algorithm == "stn"  # one loss, one step: clipped together
        groups = [learner.base + learner.response] if both else [learner.base, learner.response]
        norms.append([gradient_norm(group) for group in groups if group])
    assert min(norms[0]) > 2e-3
    assert norms[1] == pytest.approx([1e-3] * len(norms[1]), rel=1e-3)


def test_hyper_clip_norm_bounds_the_hyper_gradient(make_task: Any, stir: Stir) -> None:
    norms = []
    for clip_norm in (None, 1e-3):
        _, learner, batch = made(make_task(hyper_clip_norm=clip_norm), "stn", stir)
        torch.manual_seed(0)
        learner.hyper_step(batch)
        norms.append(gradient_norm(learner.hyper))
    assert norms[0] > 2e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("algorithm", TUNING)
def test_validation_loss_has_no_dropout_augmentation_or_penalty(make_task: Any, stir: Stir, algorithm: str) -> None:
    """At strong regularisation it is the loss of the bare network with merged weights."""
    task = make_task(start={"dropout": 0.85, "input_scale": 0.9, "decay": 0.09})
    trainer, learner, batch = made(task, algorithm, stir)
    before = torch.get_rng_state()
    loss = learner.validation_loss(batch, learner.model.mean_sample())
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn
    with trainer.model.using(learner.model.mean_sample()):
        trainer.model.eval()
        expected = F.cross_entropy(trainer.model(batch.inputs), batch.targets)
        trainer.model.train()
    assert torch.equal(loss, expected)
    sample = learner.model.mean_sample()
    training = learner.training_loss(batch, sample)
    assert training > loss + 0.1  # they are there in training


def test_training_loss_averages_penalties_over_the_rows(make_task: Any, stir: Stir) -> None:
    _, learner, batch = made(make_task(response="full"), "stn", stir)
    sample = learner.model.perturbed_sample(len(batch))
    outputs = torch.randn(len(batch), 3)
    decay = learner.task.penalties[0]
    one_by_one = []
    for row in range(len(batch)):
        assert sample.response_input is not None
        single = Sample({k: v[row : row + 1] for k, v in sample.values.items()}, sample.response_input[row : row + 1])
        one_by_one.append(decay(learner.model.network, single, {}))
    expected = F.cross_entropy(outputs, batch.targets) + torch.cat(one_by_one).mean()
    loss = learner.training_loss(batch, sample, lambda inputs, sample: (outputs, {}))
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
    held = [id(p) for o in trainer.learner.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert id(frozen) not in held
    assert len(held) == len(set(held))


def test_model_without_any_response_cannot_be_tuned(make_task: Any) -> None:
    task = make_task(response={"1": None})
    for algorithm in TUNING:
        with pytest.raises(ValueError, match=r"no layer .* has a response.*1 \(no response asked for\)"):
            Trainer(task, algorithm=algorithm)
    Trainer(task, algorithm="fixed").run_epoch()
