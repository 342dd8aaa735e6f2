"""A projection inside a larger layer of torch that holds its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tune_stn.nn.linear import ResponseLinear
from tune_stn.nn.response import ResponseSize, size_in_words
from tune_stn.nn.slot import Slot


class ResponseProjection(ResponseLinear):
    """A linear projection of which only the response is its own: the layer it is part of lends it weight and bias.

    Torch holds those under names of its own, those of attention packed into one parameter, and there they stay.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: int,
        size: ResponseSize | None,
        slot: Slot,
        generator: torch.Generator,
    ) -> None:
        base = nn.Module()
        base.weight = nn.Parameter(weight.detach())
        base.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach()))
        super().__init__(base, inputs, size, slot, generator)
        del self.weight, self.bias

    @contextmanager
    def lent(self, weight: Tensor, bias: Tensor | None) -> Iterator[None]:
        """Inside the block it is a response layer; after it, it holds no tensor with a graph, so it can be copied."""
        vars(self).update(weight=weight, bias=bias)
        try:
            yield
        finally:
            del vars(self)["weight"], vars(self)["bias"]

    def squared_norm(self, response_input: Tensor | None) -> Tensor:
        """Zero without a weight: then the layer it is part of counts it."""
        if "weight" in vars(self):
            return super().squared_norm(response_input)
        return torch.zeros(1, device=self.gate.device)

    def extra_repr(self) -> str:
        return f"response={size_in_words(self.size)}"
