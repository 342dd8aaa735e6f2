"""A batch in parts: the gradient is that of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.nn.penalties import ActivationNorm, WeightDecay
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.space import LogUniform, Sample, SearchSpace, Tunable, Uniform
from tune_stn.tasks import Task
from tune_stn.training import Trainer

pytestmark = pytest.mark.usefixtures("double")

Stir = Callable[[SelfTuningModel], None]
ALGORITHMS = ("fixed", "stn", "delta-stn")
# All of a batch of 8 share the named ones.
PER_BATCH = {"none": (), "one": ("decay",), "all": ("dropout", "strength", "decay")}
# Halves; 3, 3 and 2; more parts than examples.
PARTS = (2, 3, 100)


class Stretch:
    """Without noise, but each example by its own value."""

    names = ("dropout",)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        return inputs * (1 + sample["dropout"][:, None])


@pytest.fixture
def task(make_task: Any) -> Callable[..., Task]:
    """Its penalties are of all sorts: of each example's weights and activations, or of what the batch shares."""

    def task(network: str = "mlp", per_batch: str = "none", **settings: Any) -> Task:
        domains = {"dropout": Uniform(0.0, 0.9), "strength": Uniform(0.0, 1.0), "decay": LogUniform(1e-6, 1e-1)}
        made: Task = make_task(
            network,
            space=SearchSpace(domains, per_batch=PER_BATCH[per_batch]),
            start={"dropout": 0.2, "strength": 0.3, "decay": 1e-2},
            augmentations=(Stretch(),),
            penalties=(WeightDecay("decay"), ActivationNorm("strength", "2")),
            optimizer_args={},
            **settings,
        )
        return made

    return task


def freeze_draws(trainer: Trainer) -> None:
    """No dropout, and each example's perturbation is the same however the batch is parted."""
    trainer.model.eval()
    hyper = trainer.model.hyper
    if not isinstance(hyper, Tunable):
        return
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    noise = torch.where(hyper.per_batch, noise[:1], noise)
    taken = 0

    def perturbed(rows: int) -> Tensor:
        nonlocal taken
        part = noise[:1] if hyper.space.per_batch == hyper.space.keys() else noise[taken : taken + rows]
        taken = (taken + rows) % 8
        return hyper.raw + hyper.scale() * part

    hyper.perturbed = perturbed  # type: ignore[method-assign]


def compare(one: list[nn.Parameter], other: list[nn.Parameter]) -> None:
    """Gradients agree to 1e-12 of their norm, and there are some."""
    assert any(p.grad is not None and p.grad.norm() > 1e-6 for p in one)
    for p, q in zip(one, other, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-12 * p.grad.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "network", "per_batch"),
    # Each rule with each way to share values, each of both with either network.
    [
        (algorithm, ("mlp", "cnn")[(i + j) % 2], per_batch)
        for i, algorithm in enumerate(ALGORITHMS)
        for j, per_batch in enumerate(PER_BATCH)
    ],
)
def test_weights_learn_as_from_the_whole_batch(
    task: Callable[..., Task], stir: Stir, algorithm: str, network: str, per_batch: str
) -> None:
    """Loss, gradients and the weights after the step, to 1e-12."""
    trainers = []
    for parts in (1, *PARTS):
        trainer = Trainer(task(network, per_batch, accumulate=parts), algorithm=algorithm)
        stir(trainer.model)
        freeze_draws(trainer)
        batch = trainer.splits.train.take(torch.arange(8))
        trainers.append((trainer.stepper, trainer.rule.train_step(batch)))
    (whole, loss), *others = trainers
    for stepper, parted_loss in others:
        assert torch.allclose(parted_loss, loss, rtol=1e-12)
        assert not parted_loss.requires_grad
        for name in {"base", "response"} & whole.optimizers.keys():
            compare(whole.parameters(name), stepper.parameters(name))
        names = ("base", "response")
        for p, q in zip(whole.parameters(*names), stepper.parameters(*names), strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "tune_scales", "per_batch"),
    # Each rule with each way to share values, each of both with and without tuned scales.
    [
        (algorithm, (i + j) % 2 == 0, per_batch)
        for i, algorithm in enumerate(("stn", "delta-stn"))
        for j, per_batch in enumerate(PER_BATCH)
    ],
)
def test_hyperparameters_learn_as_from_the_whole_batch(
    task: Callable[..., Task], stir: Stir, algorithm: str, tune_scales: bool, per_batch: str
) -> None:
    """The entropy counts once, clipping is of the sum."""
    for clip_norm in (None, 1e-4):
        steppers = []
        for parts in (1, *PARTS):
            settings = {"accumulate": parts, "tune_scales": tune_scales, "hyper_clip_norm": clip_norm}
            trainer = Trainer(task("mlp", per_batch, entropy_weight=0.1, **settings), algorithm=algorithm)
            stir(trainer.model)
            freeze_draws(trainer)
            trainer.rule.hyper_step(trainer.splits.valid.take(torch.arange(8)))
            steppers.append(trainer.stepper)
        for stepper in steppers[1:]:
            compare(steppers[0].parameters("hyper"), stepper.parameters("hyper"))


def test_a_share_of_the_batch_comes_in_parts_too(task: Callable[..., Task], stir: Stir) -> None:
    """Delta-STN's response step on 5 of 8 examples, in parts of 2, 2 and 1."""
    steppers = []
    for parts in (1, 3):
        trainer = Trainer(task(accumulate=parts, response_share=0.6), algorithm="delta-stn")
        stir(trainer.model)
        freeze_draws(trainer)
        sizes: list[int] = []
        outputs = trainer.forward.outputs

        def note(batch: Batch, sample: Sample, *, sizes: Any = sizes, outputs: Any = outputs) -> Any:
            sizes.append(len(batch))
            return outputs(batch, sample)

        trainer.forward.outputs = note  # type: ignore[method-assign]
        batch = trainer.splits.train.take(torch.arange(8))
        trainer.rule.train_step(batch)
        assert sizes == ([8, 5] if parts == 1 else [3, 3, 2, 2, 2, 1])
        steppers.append(trainer.stepper)
    compare(*(stepper.parameters("response") for stepper in steppers))


def test_parts_are_only_formed_when_they_are_used(task: Callable[..., Task]) -> None:
    """Less memory is the point: a part's graph is gone before the next one is made."""
    trainer = Trainer(task(accumulate=4), algorithm="stn")
    events: list[str] = []
    loss, backward = trainer.rule.training_loss, torch.autograd.backward

    def note_loss(*args: Any) -> Tensor:
        events.append("forward")
        return loss(*args)

    def note_backward(*args: Any, **kwargs: Any) -> None:
        events.append("backward")
        backward(*args, **kwargs)

    trainer.rule.training_loss = note_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "backward", note_backward)
        trainer.rule.train_step(trainer.splits.train.take(torch.arange(8)))
    assert events == ["forward", "backward"] * 4


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("clip_norm", [None, 1e-2])
def test_summands_have_a_gradient_each(make_task: Any, parts: int, clip_norm: float | None) -> None:
    """Autograd gives two parameters that are only ever added one and the same tensor: to change it twice is wrong."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(36, 3)
            self.one, self.other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.linear(inputs)
            return outputs + (self.one + self.other)

    space = SearchSpace({"decay": LogUniform(1e-6, 1e-1)})
    own = {"model": Model, "space": space, "start": {"decay": 1e-3}, "dropout": {}, "augmentations": ()}
    trainer = Trainer(make_task(**own, accumulate=parts, clip_norm=clip_norm), algorithm="fixed")
    base, batch = trainer.stepper.parameters("base"), trainer.splits.train.take(torch.arange(8))
    expected = torch.autograd.grad(trainer.rule.training_loss(batch, trainer.model.mean_sample()), base)
    norm = torch.stack([gradient.norm() for gradient in expected]).norm()
    assert norm > 2e-2
    trainer.rule.train_step(batch)
    for parameter, gradient in zip(base, expected, strict=True):
        assert parameter.grad is not None
        clipped = gradient if clip_norm is None else gradient * clip_norm / (norm + 1e-6)  # torch's own guard
        assert torch.allclose(parameter.grad, clipped, rtol=1e-9)
