"""The response forms of `nn.Linear` and of the linear layer of GPT-2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.nn.response import ResponseLayer, ResponseSize
from tune_stn.nn.slot import Slot


class ResponseLinear(ResponseLayer):
    """`nn.Linear` with a response; inputs `(batch, ..., in)`, outputs `(batch, ..., out)`."""

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs, weight, bias)

    def expand_units(self, inner: Tensor) -> Tensor:
        return F.linear(inner, self.response_up)

    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        return values.view(values.shape[0], *[1] * (outputs.dim() - 2), values.shape[1])


class ResponseTransposedLinear(ResponseLinear):
    """The `Conv1D` of transformers, a linear layer whose weight is `(in, out)`; it has the attributes of the base."""

    def __init__(
        self, base: nn.Module, inputs: int, size: ResponseSize | None, slot: Slot, generator: torch.Generator
    ) -> None:
        super().__init__(base, inputs, size, slot, generator)
        self.take_over(base)

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs, weight.T, bias)

    def by_unit(self, weight: Tensor) -> Tensor:
        return weight.T

    def as_weight(self, by_unit: Tensor) -> Tensor:
        return by_unit.T

    def response_bound(self, weight: Tensor) -> float:
        return 1 / math.sqrt(weight.shape[0])
