"""The response form of `nn.Linear`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tune_stn.nn.response import ResponseLayer


class ResponseLinear(ResponseLayer):
    """`nn.Linear` with a response; inputs `(batch, ..., in)`, outputs `(batch, ..., out)`."""

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs, weight, bias)

    def expand_units(self, inner: Tensor) -> Tensor:
        return F.linear(inner, self.response_up)

    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        return values.view(values.shape[0], *[1] * (outputs.dim() - 2), values.shape[1])
