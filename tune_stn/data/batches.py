"""A batch, and the shuffled order in which the examples of a split come in batches.

All randomness of the order comes from the generator passed in, one permutation per pass, so the state of that generator
before a pass is all that a checkpoint needs to bring the order of the pass back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

import torch
from torch import Tensor

from tune_stn.data.carry import Carry

# Torch's losses leave such a target out: what pads the last batch of a text.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """`n > 0` examples as a network takes them, on one device.

    Attributes:
        inputs: The prepared inputs, of shape `(n, ...)`.
        targets: The targets, of shape `(n, ...)`.
        carry: What a recurrent network remembers, if the batch goes on where the batch before it ended; else None.
        rows: Which rows of the whole batch these are; all of them, unless this is a part of it.

    Raises:
        ValueError: There are no examples, or not as many targets as inputs.
    """

    inputs: Tensor
    targets: Tensor
    carry: Carry | None = None
    rows: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        check_lengths(self.inputs, self.targets)

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, start: int, stop: int) -> Batch:
        """Consecutive examples, sharing memory with these."""
        first, stop = self.rows.start or 0, min(stop, len(self))
        return replace(
            self,
            inputs=self.inputs[start:stop],
            targets=self.targets[start:stop],
            rows=slice(first + start, first + stop),
        )

    def parts(self, count: int) -> Iterator[tuple[Batch, float]]:
        """The batch in `count` parts of consecutive examples, each with its share of the batch."""
        size = -(-len(self) // count)
        for start in range(0, len(self), size):
            part = self.part(start, start + size)
            yield part, len(part) / len(self)

    def unread(self) -> Batch:
        """The same batch, on which a recurrent network leaves no state behind."""
        return self if self.carry is None else replace(self, carry=self.carry.unread())

    def weight(self) -> int:
        """By how much a mean over this batch counts in a mean over all: examples, or targets that are not ignored."""
        if self.targets.is_floating_point():
            return len(self)
        return int((self.targets != IGNORED).sum())


def check_lengths(inputs: Tensor, targets: Tensor) -> None:
    """Refuse inputs and targets that do not hold the same number of examples, at least one."""
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)} "
            "do not hold the same number of examples"
        )
    if len(inputs) == 0:
        raise ValueError("a split needs at least one example")


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Batches in one pass over `n` examples: `n // batch_size`, at least 1.

    Raises:
        ValueError: `n` or `batch_size` below 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n={n}, batch_size={batch_size}: both must be at least 1")
    return max(n // batch_size, 1)


def epoch_batches(
    n: int, batch_size: int, generator: torch.Generator, *, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """One shuffled pass over `n` examples in batches of equal size.

    Full batches only: a shape that never changes keeps compiled kernels and the cost of a step the same. The
    remainder of a pass, fewer than `batch_size` examples, is another one in the next pass. With
    `n < batch_size` there is one batch of all `n`.

    Args:
        n: number of examples.
        batch_size: examples per batch.
        generator: on the CPU, so that the order is the same on every device; one permutation is drawn in this call.
        device: of the batches. The permutation is copied there once, for a copy at every step would wait for it.

    Returns:
        Iterator over `steps_per_epoch(n, batch_size)` int64 tensors of shape `(min(n, batch_size),)`.

    Raises:
        ValueError: `n` or `batch_size` below 1.
    """
    steps = steps_per_epoch(n, batch_size)
    size = min(n, batch_size)
    return iter(torch.randperm(n, generator=generator)[: steps * size].to(device).view(steps, size).unbind())


def cycled_batches(
    n: int, batch_size: int, generator: torch.Generator, *, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """`epoch_batches` without end, reshuffled for each pass.

    A pass's permutation is drawn when its first batch is asked for, never ahead. Arguments, batches and
    errors are those of `epoch_batches`.
    """
    steps_per_epoch(n, batch_size)  # raise now, not at the first batch
    return chain.from_iterable(epoch_batches(n, batch_size, generator, device=device) for _ in repeat(None))
