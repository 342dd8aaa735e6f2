"""The way back from a self-tuning network: an ordinary one, of the user's own classes.

What `self_tuning` puts in the place of a module remembers that module, whose parameters are its own base parameters. So
the way back is to give those the values that they have at the tuned hyperparameters, and to put the modules back.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tune_stn.nn import numbers
from tune_stn.nn.dropout import UnitDropout
from tune_stn.nn.response import Responding
from tune_stn.space.sample import Sample

MEMORY = "_in_place_of"
Module = TypeVar("Module", bound=nn.Module)


def copied(network: Module) -> Module:
    """A deep copy; tensors with a graph that modules keep, which torch does not copy, are without it in the copy.

    Such are the weights of torch's hooks for weight norm, spectral norm and pruning, which the next call computes anew.
    """
    kept = [leaf for module in network.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    return copy.deepcopy(network, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})


def remember(new: nn.Module, base: nn.Module) -> None:
    """Note in whose place a module is; in a tuple, for it is no child."""
    setattr(new, MEMORY, (base,))


@torch.no_grad()
def plain_modules(network: nn.Module, sample: Sample) -> dict[int, nn.Module]:
    """For each module of a converted network that replaced one, by its id, the one that it replaced.

    The latter has its trained parameters, merged with its response at the sample, its buffers and its tuned rate.
    Modules that stayed, with numbers that followed the sample, are of the user's class again.

    Args:
        network: The converted network, in evaluation mode, which is of no more use afterwards.
        sample: A sample of one row.
    """
    found = {}
    for module in network.modules():
        numbers.release(module, sample)
        if hasattr(module, MEMORY):
            (base,) = getattr(module, MEMORY)
            if isinstance(module, UnitDropout):
                setattr(base, module.number, float(sample[module.rate]))
            elif isinstance(module, Responding):
                _fill(base, module, sample)
            base.train(module.training)
            found[id(module)] = base
    return found


def _responds(module: Responding) -> bool:
    """Whether it has a response: in itself or in its own projections, not in a child that replaced another module."""
    own = [m for m in module.modules() if isinstance(m, Responding) and (m is module or not hasattr(m, MEMORY))]
    return any(list(m.response_parameters()) for m in own)


def _fill(base: nn.Module, module: Responding, sample: Sample) -> None:
    if sample.response_input is not None and _responds(module):
        for name, value in module.merged(sample.response_input).items():
            if value is not None:
                needs_gradient = base.get_parameter(name).requires_grad
                setattr(base, name, nn.Parameter(value, requires_grad=needs_gradient))
    base._buffers.update({name: buffer for name, buffer in module._buffers.items() if name in base._buffers})
    rate = getattr(module, "dropout_rate", None)
    if rate is not None:
        base.dropout = float(sample[rate])  # type: ignore[assignment]
