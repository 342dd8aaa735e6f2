r"""What all response layers share: parameters, gates, and the four ways to evaluate them.

A response layer computes, for an input x and a response input h with one row per example (arXiv 1903.03088, eq. 9-10),

    y = W x + b + u(h) * (V x) + c(h) * b',     [u; c] = U h,

where `*` multiplies output units (channels). Its three sizes differ in V:

* full: V has the shape of W;
* low rank: V = A B with `rank` inner units;
* gate: V = W, and c(h) is added as it is. The response only rescales the units, as the exact best response of a
  linear network does (arXiv 1903.03088, theorem 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn.slot import Slot, check_rows

ResponseSize = Literal["full", "gate"] | int


def check_response_size(size: object) -> ResponseSize:
    """`size` as a response size. Raises ValueError unless it is "full", "gate" or a rank >= 1."""
    if size == "full" or size == "gate":
        return size
    if isinstance(size, str) and size.isdigit():
        size = int(size)
    if isinstance(size, int) and not isinstance(size, bool) and size >= 1:
        return size
    raise ValueError(f"response size {size!r}: accepted are 'full', 'gate' and a rank of 1 or more")


class ResponseLayer(nn.Module):
    """Base of the response layers. A family says what its product is; this class does the rest.

    The base layer's own `weight` and `bias` parameters are taken over, not copied, so an optimizer or another module
    that holds them keeps them.

    Args:
        base: the layer to respond, with `weight` of shape `(out, ...)` and `bias` of shape `(out,)` or None.
        inputs: number n of response inputs.
        size: "full", "gate" or a rank.
        slot: where the current sample is read.
        generator: draws the response parameters, so that they never shift the draws of the base parameters.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, base: nn.Module, inputs: int, size: ResponseSize, slot: Slot, generator: torch.Generator
    ) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, nn.Parameter)
        # A user's forward may read them (`self.fc.in_features`).
        for name in getattr(base, "__constants__", ()):
            setattr(self, name, getattr(base, name))
        self.slot = slot
        self.size = size
        self.weight = weight
        self.bias = base.bias  # type: ignore[assignment]
        out, fan_in = weight.shape[0], weight[0].numel()
        bound = 1 / math.sqrt(fan_in)
        has_bias = self.bias is not None

        def uniform(*shape: int, bound: float = bound) -> nn.Parameter:
            draw = torch.empty(shape, dtype=weight.dtype).uniform_(-bound, bound, generator=generator)
            # In the memory format of the base weight, or inputs would be converted for one of the two products.
            return nn.Parameter(draw.to(weight.device, memory_format=_memory_format(weight, len(shape))))

        # U starts at zero: the network starts as its base. V must then not be zero, or U had no gradient.
        self.gate = nn.Parameter(weight.new_zeros((2 if has_bias else 1) * out, inputs))
        if size == "full":
            self.response_weight = uniform(*weight.shape)
        elif size != "gate":
            # The product of the factors has the variance of the full form.
            self.response_down = uniform(size, *weight.shape[1:])
            self.response_up = uniform(out, size, bound=math.sqrt(3 / size))
        if has_bias and size != "gate":
            self.response_bias = uniform(out)
        self.train(base.training)

    # What a family provides ------------------------------------------------------------------------------------

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The base layer's map with other parameters."""
        raise NotImplementedError

    def expand_units(self, inner: Tensor) -> Tensor:
        """Map `rank` inner units (channels) to all output units by `response_up`."""
        raise NotImplementedError

    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        """Reshape `(rows, out)` to broadcast over `outputs`."""
        raise NotImplementedError

    grouped: bool = False
    """Whether output units see only their group of inputs: then `rank` inner units cannot serve them all."""

    # Evaluation ------------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor) -> Tensor:
        sample = self.slot.sample
        response_input = sample.response_input
        if response_input is None:
            return self.product(inputs, self.weight, self.bias)
        if sample.linearise:
            return self._linearised(inputs, response_input)
        if response_input.shape[0] == 1:
            return self._merged(inputs, response_input)
        return self._per_example(inputs, response_input)

    def _merged(self, inputs: Tensor, response_input: Tensor) -> Tensor:
        """Everybody shares one response input: one product with merged weights, as dear as the base layer."""
        unit, offset = self.gates(response_input)
        unit = unit.view(-1, *[1] * (self.weight.dim() - 1))
        weight = self.weight * (1 + unit) if self.size == "gate" else self.weight + unit * self.response_matrix()
        bias = None if self.bias is None or offset is None else self.bias + offset[0]
        return self.product(inputs, weight, bias)

    def _per_example(self, inputs: Tensor, response_input: Tensor) -> Tensor:
        check_rows(response_input.shape[0], inputs, where=type(self).__name__)
        unit, offset = self.gates(response_input)
        if self.size == "gate":
            outputs = self.product(inputs, self.weight, None)
            scale = self.over_units(1 + unit, outputs)
            if self.bias is None or offset is None:
                return outputs * scale
            return torch.addcmul(self.over_units(self.bias + offset, outputs), outputs, scale)
        # Two products: one with stacked weights was measured slower, for what it copies to stack and split.
        base = self.product(inputs, self.weight, self.bias)
        outputs = torch.addcmul(base, self._response(inputs), self.over_units(unit, base))
        return outputs if offset is None else outputs.add_(self.over_units(offset, base))

    def _linearised(self, inputs: Tensor, response_input: Tensor) -> Tensor:
        """Value of the base layer, and as tangent its first-order response: a dual tensor.

        The base parameters are constants here (see `training.rules.delta_stn`), so backward runs through tangents only.
        """
        check_rows(response_input.shape[0], inputs, where=type(self).__name__)
        primal, tangent = forward_ad.unpack_dual(inputs)  # type: ignore[no-untyped-call]
        unit, offset = self.gates(response_input)
        outputs = self.product(primal, self.weight, self.bias)
        if self.size == "gate":
            # A copy where there is no bias: an in-place activation may write to the outputs.
            ungated = outputs.clone() if self.bias is None else outputs - self.over_units(self.bias[None], outputs)
        else:
            ungated = self._response(primal)
        gates = self.over_units(unit, outputs)
        # Passes over the outputs are dear on a CPU: one for gates and incoming tangent together, one for the offset.
        if tangent is None:
            response = ungated * gates
        else:
            response = torch.addcmul(self.product(tangent, self.weight, None), ungated, gates)
        if offset is not None:
            response = response.add_(self.over_units(offset, outputs))
        return cast(Tensor, forward_ad.make_dual(outputs, response))  # type: ignore[no-untyped-call]

    def gates(self, response_input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unit gates `u` and bias response `c * b'`, both `(rows, out)`; the latter None in a layer without bias."""
        gates = nn.functional.linear(response_input.to(self.gate.dtype), self.gate)
        if self.bias is None:
            return gates, None
        unit, offset = gates.chunk(2, dim=-1)
        return unit, offset if self.size == "gate" else offset * self.response_bias

    def response_matrix(self) -> Tensor:
        """V, in the shape of W."""
        if self.size == "gate":
            return self.weight
        if self.size == "full":
            return self.response_weight
        return (self.response_up @ self.response_down.flatten(1)).view_as(self.weight)

    def _response(self, inputs: Tensor) -> Tensor:
        """V x for the full and the low-rank form."""
        if self.size == "full" or self.grouped:
            return self.product(inputs, self.response_matrix(), None)
        return self.expand_units(self.product(inputs, self.response_down, None))

    # For regularisers and optimizers ---------------------------------------------------------------------------

    def squared_norm(self, response_input: Tensor | None) -> Tensor:
        """Squared Frobenius norm of the effective weight W + diag(u) V of each row: shape `(rows,)`.

        Expanded by output unit, so no example's weight is ever formed.
        """
        base = self.weight.flatten(1)
        base_norm = base.square().sum(1)
        if response_input is None:
            return base_norm.sum()[None]
        unit, _ = self.gates(response_input)
        if self.size == "gate":
            return (1 + unit).square() @ base_norm
        response = self.response_matrix().flatten(1)
        cross, response_norm = (base * response).sum(1), response.square().sum(1)
        return base_norm.sum() + unit @ (2 * cross) + unit.square() @ response_norm

    def response_parameters(self) -> Iterator[nn.Parameter]:
        """U and what describes V and b'; the base parameters are all others."""
        for name, parameter in self.named_parameters(recurse=False):
            if name not in ("weight", "bias"):
                yield parameter

    def extra_repr(self) -> str:
        size = self.size if isinstance(self.size, str) else f"rank {self.size}"
        return f"weight={tuple(self.weight.shape)}, response={size}, inputs={self.gate.shape[1]}"


def _memory_format(weight: Tensor, axes: int) -> torch.memory_format:
    """Channels last where `weight` is, for a tensor of as many axes."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(axes, torch.contiguous_format)
    return wanted if weight.dim() == axes and weight.is_contiguous(memory_format=wanted) else torch.contiguous_format
