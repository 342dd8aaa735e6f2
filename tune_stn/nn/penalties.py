"""Penalties that read their strength from the current sample and are added to the training loss only.

A penalty names its hyperparameters in `names` and the modules whose outputs it wants in `paths`, and is called with the
network, the sample and those outputs; it gives one value for each row, shape `(rows,)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

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
        rate: name of the strength.
        only: path of a module or a parameter, or pattern such as `"encoder.*"`, of the parameters it is for; with
            several penalties each group of parameters has a strength of its own.

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
        total = rate.new_zeros(1)
        decayed = {id(weight) for weight in self.weights(network)}
        responding: set[int] = set()
        for layer in _responding(network):
            own = dict(layer.named_parameters(recurse=False))
            if not decayed.isdisjoint(id(parameter) for parameter in own.values()):
                for name, norm in layer.squared_norms(sample.response_input).items():
                    if id(own[name]) in decayed:
                        total = total + norm
            responding |= {id(parameter) for parameter in own.values()}
        for weight in self.weights(network):
            if id(weight) not in responding:
                total = total + weight.square().sum()
        return rate / 2 * total

    def weights(self, network: nn.Module) -> list[nn.Parameter]:
        """The parameters that it is for, each once.

        Raises:
            ValueError: There is none; the message lists those that could be.
        """
        norms = {id(p) for m in network.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
        response = {id(parameter) for layer in _responding(network) for parameter in layer.response_parameters()}
        weights = {
            path: parameter
            for path, parameter in network.named_parameters()  # a shared one by its first path
            if parameter.dim() >= 2 and id(parameter) not in norms | response
        }
        decayed = [weight for path, weight in weights.items() if self._matches(path)]
        if not decayed:
            raise ValueError(
                f"{type(self).__name__}({self.rate!r}, only={self.only!r}) matches no weight of the network; it has "
                f"{', '.join(weights) or 'none'}"
            )
        return decayed

    def _matches(self, path: str) -> bool:
        return fnmatchcase(path, self.only) or path.startswith(f"{self.only}.")


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
        strength: name of alpha.
        path: of the module; in the paper, the dropout after the last LSTM layer.
        batch_axis: of the output; the others are averaged over for each example.
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
        strength: name of beta.
        path: of the module; in the paper, the LSTM itself.
        batch_axis, time_axis: of the output.
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
