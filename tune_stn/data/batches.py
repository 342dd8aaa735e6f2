"""Shuffled batches of example indices.

All randomness comes from the generator passed in, one permutation per pass, so the state of that generator
before a pass is all that a checkpoint needs to bring the order of the pass back.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

import torch
from torch import Tensor


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
