"""What modules of a network are used for, found by small batches: whether they see the batch along their first axis.

A response, or a rate, for each example needs to know which rows are whose. A table of positions, called with `(time,)`,
has as many rows as there are positions; where those happen to be as many as there are examples, nothing would fail, and
the outputs of one example would depend on the hyperparameters of another.

And a layer of which other code reads the weight, without calling it, would not respond, though it had a response.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
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
    batches = [_few(args, kwargs, size) for size in SIZES]
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
            for few_args, few_kwargs in batches:
                for path in watched:
                    seen[path].append([])
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


@torch.no_grad()
def without_call(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], matters: Callable[[nn.Module], bool]
) -> dict[str, str]:
    """Modules that are never called though their parameters are used, by path, with the reason.

    Other code reads these, or another module holds them too and is called.

    The network is called once in evaluation mode, on two examples, without torch's fused inference path for transformer
    layers, which reads the parameters of layers that are called in training.

    Args:
        network: The network.
        args: What it is called with, as in `without_batch_axis`.
        kwargs: The same, by keyword.
        matters: Whether a module is looked at.

    Raises:
        ValueError: No tensor among the arguments has an axis.
    """
    few_args, few_kwargs = _few(args, kwargs, SIZES[0])
    watched = {path: module for path, module in network.named_modules() if matters(module)}
    read: set[int] = set()
    called: set[int] = set()

    def noting(kind: type[nn.Module]) -> type[nn.Module]:
        def getattribute(module: nn.Module, name: str) -> Any:  # of parameters, which are no ordinary attributes
            if name in module._parameters:
                read.add(id(module))
            return kind.__getattr__(module, name)

        return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__getattr__": getattribute})

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        for module in watched.values():
            stack.callback(setattr, module, "__class__", type(module))
            hook = module.register_forward_pre_hook(lambda module, _: called.add(id(module)))
            stack.callback(hook.remove)
            module.__class__ = noting(type(module))
        stack.enter_context(evaluating(network))
        network(*few_args, **few_kwargs)
    held = {id(p) for m in watched.values() if id(m) in called for p in m.parameters(recurse=False)}
    found = {}
    for path, module in watched.items():
        if id(module) in read - called:
            found[path] = "the model reads its parameters directly and does not call it"
        elif id(module) not in called and any(id(p) in held for p in module.parameters(recurse=False)):
            found[path] = "the model calls another module with the same weight in its place"
    return found


def batch_axis(module: nn.Module) -> int:
    """The axis of a layer's input that is the batch, as its own settings say."""
    if isinstance(module, (nn.LSTM, nn.MultiheadAttention, LockedDropout)):
        return 0 if module.batch_first else 1
    return 0


def _few(args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with so many examples; where there are fewer, they come again."""
    count = count_rows((args, kwargs))
    if not count:
        raise ValueError("inputs: needs a tensor whose first axis is the batch, with one example or more")
    few: tuple[tuple[Any, ...], dict[str, Any]] = take_rows((args, kwargs), torch.arange(size) % count)
    return few


def _is_batch(small: tuple[int, ...], large: tuple[int, ...], axis: int) -> bool:
    return len(small) > axis and len(large) > axis and (small[axis], large[axis]) == SIZES
