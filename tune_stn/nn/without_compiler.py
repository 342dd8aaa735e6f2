"""Torch's optimizers and dispatch modes in a process that compiles nothing, without loading torch's compiler.

Torch keeps its compiler out of a few functions of its own by decorators, which load the compiler when one of them is
first called: 800 modules, over a second of CPU time in each trial's process. As long as nothing else has loaded it,
there is nothing to keep out, and the functions below the decorators do the same.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

# Whose decorators tests/nn/test_without_compiler.py has looked at; under another version, theirs are used.
KNOWN = ("2.13",)


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch below its decorators for as long as the compiler is not loaded, the function itself then.

    Args:
        function: One of torch's own functions; it is given back as it is where the version of torch is not a known one.
    """
    return _without(function, inspect.unwrap(function)) if torch_is_known() else function


def light(kind: type[Optimizer]) -> type[Optimizer]:
    """A class of optimizers that does as `kind` does and loads no compiler.

    Args:
        kind: A class of `torch.optim`. Another one, of which it is not known what its decorators do, is given back as
            it is, and so is any where the version of torch is not a known one.

    Returns:
        A subclass of the same name.
    """
    return _light(kind) if torch_is_known() and kind.__module__.startswith("torch.optim.") else kind


@contextmanager
def tangents() -> Iterator[None]:
    """Inside the block, products and sums of a tensor that has a tangent and one that has none load no compiler.

    Torch gets the shape of their tangent from a reference function in Python, which keeps the compiler out of itself,
    and loads a library of symbolic mathematics for integers that are symbols. Nothing is compiled, so none are.
    """
    answered = _references() if torch_is_known() and not compiler_is_loaded() else ()
    for function in answered:  # torch asks for what the compiler makes of a function before it loads the compiler
        function.__dynamo_disable = _shape_of_both
    try:
        yield
    finally:
        for function in answered:
            del function.__dynamo_disable


def _shape_of_both(one: Tensor | float, other: Tensor | float, **_: Any) -> Tensor:
    """A tensor without values, of the shape and type of a sum or product of the two."""
    # Torch's own `broadcast_shapes` would load that library.
    shapes = [part.shape for part in (one, other) if isinstance(part, Tensor)]
    return torch.empty(np.broadcast_shapes(*shapes), dtype=torch.result_type(one, other), device="meta")


@functools.cache
def _references() -> tuple[Any, ...]:
    """Those functions, below torch's decorator that keeps the compiler out."""
    import torch._refs

    decorators = (
        inspect.unwrap(function, stop=lambda one: one.__code__.co_filename == torch._compile.__file__)
        for function in (torch._refs.add, torch._refs.sub, torch._refs.mul, torch._refs.true_divide)
    )
    return tuple(inspect.getclosurevars(decorator).nonlocals["fn"] for decorator in decorators)


def torch_is_known() -> bool:
    return torch.__version__.startswith(tuple(f"{version}." for version in KNOWN))


def compiler_is_loaded() -> bool:
    """Whether anything has loaded torch's compiler; nothing can be compiled where nothing has."""
    return "torch._dynamo" in sys.modules


def _light(kind: type[Optimizer]) -> type[Optimizer]:
    # Torch puts a decorator that calls hooks on the step of each class that is used, this subclass too: once is enough.
    step: Any = kind.step
    step = step.__wrapped__ if getattr(step, "hooked", False) else step
    bare = inspect.unwrap(step)

    def without_gradients(self: Optimizer, *args: Any) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return bare(self, *args)

    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: undecorated(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": _without(step, without_gradients), "__doc__": kind.__doc__})


def _without(function: Callable[..., Any], bare: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(bare)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (function if compiler_is_loaded() else bare)(*args, **kwargs)

    return either
