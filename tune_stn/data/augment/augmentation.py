"""What a task lists as an augmentation, and how its values are read from a sample."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tune_stn.space.sample import Sample


class Augmentation(Protocol):
    """`names` it reads, and a call that returns new inputs of the same shape, type and memory format."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor: ...


class LabelAugmentation(Protocol):
    """An augmentation that changes the targets of a classifier too, applied after the others.

    The call takes integer targets of shape `(batch,)` or class probabilities of shape `(batch, classes)`, and
    returns inputs as an `Augmentation` does and class probabilities, which `torch.nn.functional.cross_entropy` takes.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, inputs: Tensor, targets: Tensor, sample: Sample) -> tuple[Tensor, Tensor]: ...


def value_of(sample: Sample, name: str, inputs: Tensor) -> Tensor:
    """The value `name`, of shape `(batch,)` or `(1,)`; any other shape raises ValueError."""
    value = sample[name]
    # Checked here, for one image and many values would broadcast to many images without a word.
    if tuple(value.shape) not in {(1,), (len(inputs),)}:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, but the batch has {len(inputs)} examples")
    return value


def value_or_zero(sample: Sample, name: str | None, inputs: Tensor) -> Tensor:
    """`value_of`; zero, of shape `(1,)`, for a hyperparameter that is not there."""
    return torch.zeros(1, device=inputs.device) if name is None else value_of(sample, name, inputs)


def over_examples(values: Tensor, inputs: Tensor) -> Tensor:
    """Values of shape `(rows,)` with axes of length 1 appended, to broadcast against `inputs`."""
    return values.view(-1, *[1] * (inputs.ndim - 1))


def check_floating(inputs: Tensor) -> None:
    if not inputs.is_floating_point():
        raise ValueError(f"needs floating-point inputs, not {inputs.dtype}")


def check_some(names: tuple[str, ...], what: str) -> None:
    if not names:
        raise ValueError(f"{what} reads no hyperparameter: name at least one, or leave it out")
