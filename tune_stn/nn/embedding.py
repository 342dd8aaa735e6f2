"""The response form of `nn.Embedding`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from tune_stn.nn.response import ResponseLayer, ResponseSize
from tune_stn.nn.slot import Slot, check_rows


class ResponseEmbedding(ResponseLayer):
    """A table with a response per dimension: `y = W[x] + u(h) * V[x]`, V 0 in the row of `padding_idx`.

    Inputs `(batch, ...)` of indices, outputs `(batch, ..., dim)`. Only rows that are looked up are ever computed, with
    one response input too: merged weights would be a whole table for the few rows that a batch needs. A `weight_rate`
    drops whole rows: every occurrence of a word in the batch, or none (embedding dropout, arXiv 1708.02182).
    """

    padding_idx: int | None
    scale_grad_by_freq: bool

    def __init__(
        self, base: nn.Embedding, inputs: int, size: ResponseSize | None, slot: Slot, generator: torch.Generator
    ) -> None:
        super().__init__(base, inputs, size, slot, generator)
        if self.padding_idx is not None and size is not None and size != "gate":
            table = self.response_weight if size == "full" else self.response_down.T
            with torch.no_grad():
                table[self.padding_idx] = 0

    @classmethod
    def why_not(cls, base: nn.Module) -> str | None:
        assert isinstance(base, nn.Embedding)
        if base.max_norm is not None:
            return "max_norm rescales its weight in place during the forward pass"
        return "sparse=True: its response would have no sparse gradient" if base.sparse else None

    def forward(self, inputs: Tensor) -> Tensor:
        sample = self.slot.sample
        response_input = sample.response_input
        outputs = self.product(inputs, self.weight, None)
        if response_input is not None and self.size is not None:
            check_rows(response_input.shape[0], inputs, where=type(self).__name__)
            unit = self._spread(self.gates(response_input)[0], outputs)
            ungated = self._ungated(inputs, outputs)
            if sample.linearise:
                outputs = cast(Tensor, forward_ad.make_dual(outputs, ungated * unit))  # type: ignore[no-untyped-call]
            else:
                outputs = torch.addcmul(outputs, ungated, unit)
        kept = self.weight_mask(self.weight[:, :1])
        return outputs if kept is None else outputs * F.embedding(inputs, kept)

    def _ungated(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """V[x], given W[x]."""
        if self.size == "full":
            return self.product(inputs, self.response_weight, None)
        if self.size != "gate":
            return F.linear(self.product(inputs, self.response_down.T, None), self.response_up)
        if self.padding_idx is None:
            return outputs
        return outputs.masked_fill(inputs.eq(self.padding_idx)[..., None], 0)

    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        weight = super().merged(response_input)["weight"]
        assert weight is not None
        if self.size == "gate" and self.padding_idx is not None:
            weight[self.padding_idx] = self.weight[self.padding_idx]
        return {"weight": weight}

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(inputs, weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        return values.view(values.shape[0], *[1] * (outputs.dim() - 2), values.shape[1])

    def by_unit(self, weight: Tensor) -> Tensor:
        return weight.T

    def as_weight(self, by_unit: Tensor) -> Tensor:
        return by_unit.T

    def response_bound(self, weight: Tensor) -> float:
        """As language models draw their tables, whatever the fan-in of W."""
        return 0.1
