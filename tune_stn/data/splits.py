"""Examples held as one tensor, and the three splits that a task trains, tunes and tests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from tune_stn.data.batches import Batch, check_lengths, cycled_batches, epoch_batches, steps_per_epoch


class Examples(Protocol):
    """What the training loop asks of a split."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...

    def steps(self, batch_size: int) -> int:
        """Batches in one pass of `batches`."""
        ...

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One pass for training, in batches of one shape; all randomness comes from the generator (on the CPU)."""
        ...

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """As `batches`, without end; for hyper-steps."""
        ...

    def whole(self, batch_size: int) -> Iterator[Batch]:
        """Everything once, in order, without a gradient; for evaluation."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """A data set of `n > 0` examples in memory, on one device.

    Attributes:
        inputs: The inputs as they are stored, of shape `(n, ...)`.
        targets: The targets, of shape `(n, ...)`.
        prepare: A function that makes the inputs of a batch from the stored ones, on their device; so images stay
            bytes, a quarter of the memory. None if there is nothing to be done.

    Raises:
        ValueError: Inputs or targets are no tensor, there are no examples, or not as many targets as inputs.
    """

    inputs: Tensor
    targets: Tensor
    prepare: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            if not isinstance(given := getattr(self, name), Tensor):
                raise ValueError(f"{name} of a split are a {type(given).__name__}: give a tensor, torch.as_tensor(...)")
        check_lengths(self.inputs, self.targets)

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def take(self, indices: Tensor) -> Batch:
        """The batch of the examples at `indices`, an int64 tensor of shape `(m,)` on any device: a copy, prepared."""
        indices = indices.to(self.inputs.device)
        inputs = self.inputs[indices]
        return Batch(inputs if self.prepare is None else self.prepare(inputs), self.targets[indices])

    def steps(self, batch_size: int) -> int:
        return steps_per_epoch(len(self), batch_size)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        return map(self.take, epoch_batches(len(self), batch_size, generator, device=self.inputs.device))

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        return map(self.take, cycled_batches(len(self), batch_size, generator, device=self.inputs.device))

    def whole(self, batch_size: int) -> Iterator[Batch]:
        return map(self.take, torch.split(torch.arange(len(self), device=self.inputs.device), batch_size))


@dataclass(frozen=True, eq=False)
class Splits:
    """Weights learn from `train`, hyperparameters and decisions from `valid`; `test` is only reported.

    Raises:
        ValueError: One of them is no split.
    """

    train: Examples
    valid: Examples
    test: Examples

    def __post_init__(self) -> None:
        for name, split in vars(self).items():
            if not callable(getattr(split, "whole", None)):
                raise ValueError(f"{name}={type(split).__name__}: give a Split(inputs, targets) or a Text")

    def to(self, device: torch.device | str) -> Splits:
        return Splits(self.train.to(device), self.valid.to(device), self.test.to(device))


def random_splits(inputs: Tensor, targets: Tensor, *, sizes: Sequence[int], seed: int) -> tuple[Split, ...]:
    """Disjoint random splits, one per size; what `sizes` leave over is in none of them.

    The draw depends on `seed` and the number of examples alone, never on the global random state, so that
    all methods compared at a seed see the same splits.

    Args:
        inputs: shape `(n, ...)`.
        targets: shape `(n, ...)`.
        sizes: examples in each split: `(train, valid)` beside an official test set, `(train, valid, test)`
            for `Splits(*random_splits(...))`.
        seed: of a generator made for this draw.

    Raises:
        ValueError: a size below 1, or more examples asked for than there are.
    """
    check_lengths(inputs, targets)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes={tuple(sizes)}: each split needs at least one example")
    if sum(sizes) > len(inputs):
        raise ValueError(f"sizes={tuple(sizes)} ask for {sum(sizes)} examples, but there are {len(inputs)}")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).to(inputs.device)
    return tuple(Split(inputs[part], targets[part]) for part in torch.split(order[: sum(sizes)], list(sizes)))


def official_splits(
    training_set: Split,
    test_set: Split,
    *,
    train_images: int,
    valid_images: int,
    test_images: int,
    prepare: Callable[[Tensor], Tensor],
    seed: int,
) -> Splits:
    """Training and validation examples drawn from an official training set by `seed`, test examples in order.

    Args:
        training_set: the official one.
        test_set: the official one.
        train_images: in the training split.
        valid_images: in the validation split.
        test_images: in the test split, the first of the official ones.
        prepare: of all three (`Split.prepare`).
        seed: as in `random_splits`.

    Raises:
        ValueError: there are fewer examples than asked for, or none of a split is.
    """
    train, valid = random_splits(
        training_set.inputs, training_set.targets, sizes=(train_images, valid_images), seed=seed
    )
    if not 1 <= test_images <= len(test_set):
        raise ValueError(f"test_images={test_images}: accepted is 1 to {len(test_set)}")
    test = Split(test_set.inputs[:test_images], test_set.targets[:test_images])
    return Splits(*(Split(split.inputs, split.targets, prepare=prepare) for split in (train, valid, test)))
