"""Examples held as one tensor, and the three splits that a task trains, tunes and tests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from tune_stn.data.batches import cycled_batches, epoch_batches, steps_per_epoch
from tune_stn.data.carry import Carry

# Torch's losses leave such a target out: what pads the last batch of a text.
IGNORED = -100


class Examples(Protocol):
    """What the training loop asks of a split. A batch is a `Split`."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...

    def steps(self, batch_size: int) -> int:
        """Batches in one pass of `batches`."""
        ...

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Split]:
        """One pass for training, in batches of one shape; all randomness comes from the generator (on the CPU)."""
        ...

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Split]:
        """As `batches`, without end; for hyper-steps."""
        ...

    def whole(self, batch_size: int) -> Iterator[Split]:
        """Everything once, in order, without a gradient; for evaluation."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """`n > 0` examples in memory, on one device.

    Attributes:
        inputs: shape `(n, ...)`, as they are stored.
        targets: shape `(n, ...)`.
        prepare: makes the inputs of a batch from the stored ones, on their device; so images stay bytes, a quarter of
            the memory. None if nothing is to be done, as in a batch.
        carry: of a batch that goes on where the batch before it ended: what a recurrent network remembers.
        rows: of a part of such a batch: which of its rows.

    Raises:
        ValueError: no examples, or not as many targets as inputs.
    """

    inputs: Tensor
    targets: Tensor
    prepare: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    carry: Carry | None = None
    rows: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        _check_lengths(self.inputs, self.targets)

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def take(self, indices: Tensor) -> Split:
        """The batch of the examples at `indices`, an int64 tensor of shape `(m,)` on any device: a copy, prepared."""
        indices = indices.to(self.inputs.device)
        inputs = self.inputs[indices]
        return Split(inputs if self.prepare is None else self.prepare(inputs), self.targets[indices])

    def part(self, start: int, stop: int) -> Split:
        """Consecutive examples, sharing memory with these."""
        first = self.rows.start or 0
        return replace(
            self,
            inputs=self.inputs[start:stop],
            targets=self.targets[start:stop],
            rows=slice(first + start, first + stop),
        )

    def weight(self) -> int:
        """By how much a mean over this batch counts in a mean over all: examples, or in a text the predicted tokens."""
        if self.targets.ndim == 1 or self.targets.is_floating_point():
            return len(self)
        return int((self.targets != IGNORED).sum())

    def steps(self, batch_size: int) -> int:
        return steps_per_epoch(len(self), batch_size)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Split]:
        return map(self.take, epoch_batches(len(self), batch_size, generator, device=self.inputs.device))

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Split]:
        return map(self.take, cycled_batches(len(self), batch_size, generator, device=self.inputs.device))

    def whole(self, batch_size: int) -> Iterator[Split]:
        return map(self.take, torch.split(torch.arange(len(self), device=self.inputs.device), batch_size))


@dataclass(frozen=True, eq=False)
class Splits:
    """Weights learn from `train`, hyperparameters and decisions from `valid`; `test` is only reported."""

    train: Examples
    valid: Examples
    test: Examples

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
    _check_lengths(inputs, targets)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes={tuple(sizes)}: each split needs at least one example")
    if sum(sizes) > len(inputs):
        raise ValueError(f"sizes={tuple(sizes)} ask for {sum(sizes)} examples, but there are {len(inputs)}")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    everything = Split(inputs, targets)
    return tuple(everything.take(part) for part in torch.split(order[: sum(sizes)], list(sizes)))


def _check_lengths(inputs: Tensor, targets: Tensor) -> None:
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)} "
            "do not hold the same number of examples"
        )
    if len(inputs) == 0:
        raise ValueError("a split needs at least one example")


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
    test = test_set.part(0, test_images)
    return Splits(*(Split(split.inputs, split.targets, prepare=prepare) for split in (train, valid, test)))
