"""Penalties that read their strength from the current sample and are added to the training loss only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tune_stn.nn.response import ResponseLayer
from tune_stn.space.sample import Sample


@dataclass(frozen=True)
class WeightDecay:
    """`rate / 2` times the squared norm of all weights (parameters of two or more axes; no biases, no norms).

    A response layer counts with the effective weight W + diag(u) V of each example. Calling it gives the penalty of
    each row of the sample, shape `(rows,)`.
    """

    rate: str = "weight_decay"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.rate,)

    def __call__(self, network: nn.Module, sample: Sample) -> Tensor:
        rate = sample[self.rate]
        total = rate.new_zeros(1)
        responding: set[int] = set()
        for module in network.modules():
            if isinstance(module, ResponseLayer):
                responding.update(id(parameter) for parameter in module.parameters(recurse=False))
                total = total + module.squared_norm(sample.response_input)
        for parameter in network.parameters():
            if parameter.dim() >= 2 and id(parameter) not in responding:
                total = total + parameter.square().sum()
        return rate / 2 * total
