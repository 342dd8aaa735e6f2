"""Which modules of a network see the batch along their first axis, found by two small batches of different size.

A response, or a rate, for each example needs to know which rows are whose. A table of positions, called with `(time,)`,
has as many rows as there are positions; where those happen to be as many as there are examples, nothing would fail, and
the outputs of one example would depend on the hyperparameters of another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tune_stn.nn.first_order import evaluating
from tune_stn.nn.modules import LockedDropout
from tune_stn.nn.rows import count_rows, take_rows

SIZES = (2, 3)


@torch.no_grad()
def without_batch_axis(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    axis_of: Callable[[nn.Module], int | None],
) -> dict[str, str]:
    """Modules whose first axis is not the batch, by path, with what was seen; of modules that are called.

    The network is called twice in evaluation mode, on two and on three examples.

    Args:
        network: The network.
        args: What it is called with: the first axis of the first tensor is the batch, and of the others where they are
            as long.
        kwargs: The same, by keyword.
        axis_of: Gives the axis of a module's input that is to be the batch, or None for a module that does not matter.

    Raises:
        ValueError: No tensor among the arguments has an axis.
    """
    count = count_rows((args, kwargs))
    if not count:
        raise ValueError("inputs: needs a tensor whose first axis is the batch, with one example or more")
    seen: dict[str, list[list[tuple[int, ...]]]] = defaultdict(list)

    def watch(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            shapes = [tuple(leaf.shape) for leaf in tree_leaves((inputs, keywords)) if isinstance(leaf, Tensor)]
            if shapes:
                seen[path][-1].append(shapes[0])

        return hook

    watched = {path: axis for path, module in network.named_modules() if (axis := axis_of(module)) is not None}
    modules = dict(network.named_modules())
    hooks = [modules[path].register_forward_pre_hook(watch(path), with_kwargs=True) for path in watched]
    try:
        with evaluating(network):
            for size in SIZES:
                for path in watched:
                    seen[path].append([])
                few_args, few_kwargs = take_rows((args, kwargs), torch.arange(size) % count)
                network(*few_args, **few_kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for path, axis in watched.items():
        for small, large in zip(*seen[path], strict=False):
            if not _is_batch(small, large, axis):
                which = "first" if axis == 0 else "second"
                found[path] = f"its {which} axis is not the batch: it sees {small} of {SIZES[0]} examples"
    return found


def batch_axis(module: nn.Module) -> int:
    """The axis of a layer's input that is the batch, as its own settings say."""
    if isinstance(module, (nn.LSTM, nn.MultiheadAttention, LockedDropout)):
        return 0 if module.batch_first else 1
    return 0


def _is_batch(small: tuple[int, ...], large: tuple[int, ...], axis: int) -> bool:
    return len(small) > axis and len(large) > axis and (small[axis], large[axis]) == SIZES
