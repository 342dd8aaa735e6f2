"""Ridge regression: the task whose every answer is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune_stn.data.splits import Split, Splits
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import LogUniform, SearchSpace
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task, mean_over_examples


def ridge(*, features: int = 20, train_examples: int = 40, noise: float = 1.0) -> Task:
    """Ridge regression on synthetic data with one penalty, whose best value is known in closed form."""
    check_sizes(features=features, train_examples=train_examples)
    return Task(
        name="ridge",
        description="ridge regression",
        model=lambda: nn.Linear(features, 1, bias=False),
        data=lambda seed: _draw(features, train_examples, noise, seed),
        space=SearchSpace({"penalty": LogUniform(1e-3, 1e1)}),
        # Too much on purpose: at a weak penalty the weights hardly respond, and a response learns from noise.
        start={"penalty": 3.0},
        loss=half_squared_error,
        penalties=(WeightDecay("penalty"),),
        training=Training(
            epochs=300,
            batch_size=200,  # all examples, in training and in the hyper-step: no noise but the perturbation
            lr=0.1,
            optimizer_args={"momentum": 0.9},
            hyper_lr=0.02,
            hyper_optimizer="Adam",
            train_steps=1,
            warmup_epochs=50,
            scale=0.5,
            tune_scales=False,
            response="full",
        ),
    )


@mean_over_examples
def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of half the squared error; both `(batch, 1)`."""
    return (outputs - targets).square().mean() / 2


def best_weight(split: Split, penalty: float) -> Tensor:
    """Exact minimiser of mean half squared error plus `penalty / 2` times the squared norm, shape `(features, 1)`."""
    inputs, targets = split.inputs.double(), split.targets.double()
    gram = inputs.T @ inputs / len(inputs) + penalty * torch.eye(inputs.shape[1], dtype=torch.double)
    weight: Tensor = torch.linalg.solve(gram, inputs.T @ targets / len(inputs))
    return weight


def validation_loss(splits: Splits, penalty: float) -> float:
    """Validation loss of the exact minimiser at one penalty."""
    train, valid = splits.train, splits.valid
    assert isinstance(train, Split)
    assert isinstance(valid, Split)
    return float(half_squared_error(valid.inputs.double() @ best_weight(train, penalty), valid.targets.double()))


def _draw(features: int, train_examples: int, noise: float, seed: int) -> Splits:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(features, 1, generator=generator) / features**0.5

    def split(examples: int) -> Split:
        inputs = torch.randn(examples, features, generator=generator)
        return Split(inputs, inputs @ truth + noise * torch.randn(examples, 1, generator=generator))

    return Splits(train=split(train_examples), valid=split(200), test=split(1000))
