"""A network's prediction to first order in its response: `f(x; 0) + J_h f(x; 0) h`.

The Jacobian product is a tangent in forward mode: response layers start it where a sample says `linearise`, torch
carries it through everything between them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from tune_stn.nn.without_compiler import tangents


def first_order(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, but with value plus tangent in the place of each tensor that it gives."""

    def predict(*args: Any, **kwargs: Any) -> Any:
        # Fused attention kernels have no tangents.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), tangents():
            # Summed inside the dual level, used past it: inside, backward would carry tangents of its own (of ReLU's
            # saved result, say), three times the products and none of them of use.
            return map_tensors(to_first_order, forward(*args, **kwargs))

    return predict


def to_first_order(output: Tensor) -> Tensor:
    """Value plus tangent of a dual tensor, of half precision in single; of a plain one, itself."""
    primal: Tensor
    tangent: Tensor | None
    primal, tangent = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
    if tangent is None:
        return primal
    dtype = torch.promote_types(primal.dtype, torch.float32)
    return primal.to(dtype) + tangent.to(dtype)


def map_tensors(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """`function` of each tensor in what a model returns, which keeps its type: a tensor, or a container of any kind.

    Containers are tuples (named ones too), lists, mappings, dataclasses and what else `torch.utils._pytree` knows of:
    transformers tells it of its outputs.
    """

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = {f.name: map_tensors(function, getattr(leaf, f.name)) for f in dataclasses.fields(leaf) if f.init}
            return dataclasses.replace(leaf, **fields)
        if isinstance(leaf, dict):  # of a class of the user's own, which pytree takes for a leaf
            rebuilt = copy.copy(leaf)
            rebuilt.update({key: map_tensors(function, value) for key, value in leaf.items()})
            return rebuilt
        return leaf

    return tree_map(mapped, outputs)


@contextmanager
def constants(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block, the parameters need no gradient: so backward runs through the tangents alone."""
    held = list(parameters)
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside the block, the network is in evaluation mode; after it, each module is in the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        network.train(modes[0][1])  # of its own, if it has one that does more than to set the mode
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the block, batch norms normalise by the batch, as in training, and do not count it."""
    with without_running_statistics(model) as norms:
        evaluated = [norm for norm in norms if not norm.training]
        for norm in evaluated:
            norm.training = True
        try:
            yield
        finally:
            for norm in evaluated:
                norm.training = False


@contextmanager
def clean_mode(network: nn.Module) -> Iterator[None]:
    """Inside the block, the network is in evaluation mode, but batch norms normalise by the batch.

    So it is the same function on training and validation batches, and at any weights: running statistics are those of
    the weights that training has now.
    """
    with evaluating(network), batch_statistics(network):
        yield


@contextmanager
def without_running_statistics(model: nn.Module) -> Iterator[list[nn.modules.batchnorm._BatchNorm]]:
    """Inside the block, batch norms normalise by the batch but do not count it a second time; it gets all of them.

    Nor do spectral norms go on with their power iteration.
    """
    modules = list(model.modules())
    norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    counting = [norm for norm in norms if norm.track_running_stats]
    # Torch has two: a parametrization, which is a module, and a hook.
    iterating = [
        (holder, holder.n_power_iterations)
        for module in modules
        for holder in (module, *module._forward_pre_hooks.values())
        if type(holder).__name__ in ("_SpectralNorm", "SpectralNorm") and hasattr(holder, "n_power_iterations")
    ]
    for norm in counting:
        norm.track_running_stats = False
    for holder, _ in iterating:
        holder.n_power_iterations = 0
    try:
        yield norms
    finally:
        for norm in counting:
            norm.track_running_stats = True
        for holder, count in iterating:
            holder.n_power_iterations = count
