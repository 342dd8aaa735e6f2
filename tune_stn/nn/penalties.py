"""Penalties that read their strength from the current sample and are added to the training loss only.

A penalty names its hyperparameters in `names` and the modules whose outputs it wants in `paths`, and is called with the
network, the sample and those outputs; it gives one value for each row, shape `(rows,)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tune_stn.nn.observe import Activations
from tune_stn.nn.response import Responding
from tune_stn.space.sample import Sample

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


class Penalty(Protocol):
    """Adds to the training loss, by the hyperparameters it names: one value for each row of the sample."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> tuple[str, ...]: ...
    def __call__(self, network: nn.Module, sample: Sample, activations: Activations) -> Tensor: ...


@dataclass(frozen=True)
class WeightDecay:
    """`rate / 2` times the squared norm of all weights (parameters of two or more axes; no biases, no norms).

    A response layer counts with the effective weight W + diag(u) V of each example, without forming it.

    Attributes:
        rate: Name of the hyperparameter that is the strength.
        only: Path of a module or a parameter, or a pattern such as `"encoder.*"`, that selects the parameters; with
            several penalties each group of parameters has a strength of its own. Default all.

    Raises:
        ValueError: when called, no weight matches `only`; the message lists those that there are.
    """

    rate: str = "weight_decay"
    only: str = "*"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.rate,)

    @property
    def paths(self) -> tuple[str, ...]:
        return ()

    def __call__(self, network: nn.Module, sample: Sample, activations: Activations) -> Tensor:
        rate = sample[self.rate]
        total: Tensor = rate.new_zeros(1)
        weights = self.weights(network)
        decayed = {id(weight) for weight in weights}
        responding: set[int] = set()
        for layer in _responding(network):
            own = _own(layer)
            if not decayed.isdisjoint(id(parameter) for parameter in own.values()):
                for name, norm in layer.squared_norms(sample.response_input).items():
                    if id(own[name]) in decayed:
                        total = total + norm
            responding |= {id(parameter) for parameter in own.values()}
        total = _AddSquares.apply(total, *(weight for weight in weights if id(weight) not in responding))  # type: ignore[no-untyped-call]
        return rate / 2 * total

    def weights(self, network: nn.Module) -> list[nn.Parameter]:
        """The parameters that it is for, each once.

        Raises:
            ValueError: There is none; the message lists those that could be.
        """
        found: dict[int, tuple[str, nn.Parameter]] = {}
        excluded: set[int] = set()
        for prefix, module in network.named_modules():  # one pass: in a small network it takes as long as a layer
            own = _own(module)
            if isinstance(module, NORMS):
                excluded |= {id(parameter) for parameter in own.values()}
            if isinstance(module, Responding):
                excluded |= {id(parameter) for parameter in module.response_parameters()}
            for name, parameter in own.items():  # a shared one by its first path
                found.setdefault(id(parameter), (f"{prefix}.{name}".removeprefix("."), parameter))
        weights = {path: p for path, p in found.values() if p.dim() >= 2 and id(p) not in excluded}
        decayed = [weight for path, weight in weights.items() if self._matches(path)]
        if not decayed:
            raise ValueError(
                f"{type(self).__name__}({self.rate!r}, only={self.only!r}) matches no weight of the network; it has "
                f"{', '.join(weights) or 'none'}"
            )
        return decayed

    def _matches(self, path: str) -> bool:
        return fnmatchcase(path, self.only) or path.startswith(f"{self.only}.")


class _AddSquares(torch.autograd.Function):
    """`total`, and to it the sum of squares of each weight: one node in the graph, where torch would make three for
    each weight.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        for weight in weights:
            total = total + weight.square().sum()
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        twice = 2 * gradient.sum()  # over the rows, which share the weights
        pairs = zip(ctx.saved_tensors, wanted, strict=True)
        return gradient, *(weight * twice.to(weight.dtype) if wants else None for weight, wants in pairs)


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters by name, those of its children left out."""
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


def _responding(network: nn.Module) -> list[Responding]:
    return [module for module in network.modules() if isinstance(module, Responding)]


@dataclass(frozen=True)
class OptimizerWeightDecay(WeightDecay):
    """The weight decay that the optimizer does itself, such as AdamW's, which the loss has no part in.

    Before each step, the optimizer's `weight_decay` of these weights is set to the present value; of others it stays
    what the optimizer was given. To the loss a penalty of the same strength is added without its gradient: so a rule
    sees how much the decay weighs. A response cannot learn about it, so "stn" and "delta-stn" refuse it.

    Attributes and raises: as for `WeightDecay`.

    Example:
        >>> Task(..., penalties=(OptimizerWeightDecay("decay"),), training=Training(optimizer="AdamW", lr=1e-3))
    """

    def __call__(self, network: nn.Module, sample: Sample, activations: Activations) -> Tensor:
        with torch.no_grad():
            return super().__call__(network, sample, activations)


@dataclass(frozen=True)
class ActivationNorm:
    """Activation regularisation: `strength` times the mean square of a module's output (arXiv 1708.01009, section 4.3).

    Attributes:
        strength: Name of the hyperparameter that is alpha.
        path: Path of the module; in the paper, the dropout after the last LSTM layer.
        batch_axis: Axis of the output that is the batch; the mean is over the others, for each example. Default 0.
    """

    strength: str
    path: str
    batch_axis: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (self.strength,)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    def __call__(self, network: nn.Module, sample: Sample, activations: Activations) -> Tensor:
        means = [_per_example(output.square(), self.batch_axis) for output in activations[self.path]]
        return sample[self.strength] * sum(means)


@dataclass(frozen=True)
class TemporalActivationNorm:
    """Temporal activation regularisation: `strength` times the mean square of the step-to-step change of a module's
    output (arXiv 1708.01009, section 4.3).

    Attributes:
        strength: Name of the hyperparameter that is beta.
        path: Path of the module; in the paper, the LSTM itself.
        batch_axis, time_axis: Axes of the output that are the batch and time.
    """

    strength: str
    path: str
    batch_axis: int = 0
    time_axis: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return (self.strength,)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    def __call__(self, network: nn.Module, sample: Sample, activations: Activations) -> Tensor:
        changes = [output.diff(dim=self.time_axis).square() for output in activations[self.path]]
        return sample[self.strength] * sum(_per_example(change, self.batch_axis) for change in changes)


def _per_example(values: Tensor, batch_axis: int) -> Tensor:
    """Mean over all axes but the batch, shape `(batch,)`; of nothing (the changes of a single step), zero."""
    flat = values.movedim(batch_axis, 0).unsqueeze(-1).flatten(1)
    return flat.sum(1) / max(flat.shape[1], 1)
