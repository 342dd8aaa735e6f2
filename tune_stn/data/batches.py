"""A batch, and the shuffled order in which the examples of a split come in batches.

All randomness of the order comes from the generator passed in, one permutation per pass, so the state of that generator
before a pass is all that a checkpoint needs to bring the order of the pass back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tune_stn.data.carry import Carry
from tune_stn.nn.rows import take_rows

# Torch's losses leave such a target out: what pads the last batch of a text.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """`n > 0` examples as a network takes them, on one device.

    Attributes:
        inputs: The prepared inputs: a tensor of shape `(n, ...)`, or a dict, tuple or list of such tensors.
        targets: The targets: a tensor of shape `(n, ...)`, or a container of such tensors.
        carry: The state of a recurrent network, if the batch goes on where the batch before it ended. Default None.
        rows: The rows of the whole batch that this one holds. Default all of them: it is not a part.

    Raises:
        ValueError: There are no examples, or not as many targets as inputs.
    """

    inputs: Any
    targets: Any
    carry: Carry | None = None
    rows: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        check_lengths(self.inputs, self.targets)

    def __len__(self) -> int:
        return count_examples(self.inputs)

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        device: torch.device = tensors_in(self.inputs)[0].device
        return device

    def part(self, start: int, stop: int) -> Batch:
        """Consecutive examples, sharing memory with these."""
        first, stop = self.rows.start or 0, min(stop, len(self))
        return replace(
            self,
            inputs=take_rows(self.inputs, slice(start, stop)),
            targets=take_rows(self.targets, slice(start, stop)),
            rows=slice(first + start, first + stop),
        )

    def parts(self, count: int) -> Iterator[tuple[Batch, float]]:
        """The batch in `count` parts of consecutive examples, each with its share of the batch."""
        if count == 1:  # nothing to cut
            yield self, 1.0
            return
        size = -(-len(self) // count)
        for start in range(0, len(self), size):
            part = self.part(start, start + size)
            yield part, len(part) / len(self)

    def unread(self) -> Batch:
        """The same batch, on which a recurrent network leaves no state behind."""
        return self if self.carry is None else replace(self, carry=self.carry.unread())

    def weight(self) -> int:
        """By how much a mean over this batch counts in a mean over all: examples, or targets that are not ignored."""
        if not isinstance(self.targets, Tensor) or self.targets.is_floating_point():
            return len(self)
        return int((self.targets != IGNORED).sum())


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of inputs or targets: itself, or those of a container."""
    return [tree] if isinstance(tree, Tensor) else [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def count_examples(tree: Any) -> int:
    """The number of examples in inputs or targets that `check_lengths` has let pass."""
    return len(tensors_in(tree)[0])


def check_lengths(inputs: Any, targets: Any) -> None:
    """Refuse inputs and targets of which not every tensor holds the same number of examples, at least one."""
    of_inputs, of_targets = tensors_in(inputs), tensors_in(targets)
    for name, tensors, given in (("inputs", of_inputs, inputs), ("targets", of_targets, targets)):
        if not tensors:
            raise ValueError(f"{name} are a {type(given).__name__} without a tensor: examples are along the first axis")
    lengths = {len(tensor) if tensor.ndim else None for tensor in of_inputs + of_targets}
    if len(lengths) > 1 or None in lengths:
        shapes = [", ".join(str(tuple(t.shape)) for t in tensors) for tensors in (of_inputs, of_targets)]
        raise ValueError(
            f"inputs of shape {shapes[0]} and targets of shape {shapes[1]} do not hold the same number of examples"
        )
    if len(of_inputs[0]) == 0:
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
        n: Number of examples.
        batch_size: Number of examples per batch.
        generator: Random generator on the CPU, so that the order is the same on every device; this call draws one
            permutation.
        device: Device of the batches. The permutation is copied there once, since every step would wait for a copy of
            its own. Default the CPU.

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
