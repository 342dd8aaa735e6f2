r"""What all response layers share: parameters, gates, and the four ways to evaluate them.

A response layer computes, for an input x and a response input h with one row per example (arXiv 1903.03088, eq. 9-10),

    y = W x + b + u(h) * (V x) + c(h) * b',     [u; c] = U h,

where `*` multiplies output units (channels). Its three sizes differ in V:

* full: V has the shape of W;
* low rank: V = A B with `rank` inner units;
* gate: V = W, and c(h) is added as it is. The response only rescales the units, as the exact best response of a
  linear network does (arXiv 1903.03088, theorem 3).

With no size at all there is no response: the layer is its base, and only reads the rate at which weights are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn.numbers import MAX_RATE
from tune_stn.nn.slot import Slot, check_rows

ResponseSize = Literal["full", "gate"] | int


def check_response_size(size: object, otherwise: str = "") -> ResponseSize:
    """`size` as a response size.

    Args:
        size: "full", "gate" or a rank, an integer of 1 or more.
        otherwise: What else the caller accepts, for the error. Default nothing.

    Raises:
        ValueError: `size` is something else.
    """
    if size == "full" or size == "gate":
        return size
    if isinstance(size, str) and size.isdigit():
        size = int(size)
    if isinstance(size, int) and not isinstance(size, bool) and size >= 1:
        return size
    raise ValueError(f"response={size!r}: accepted are 'full', 'gate' and a rank of 1 or more{otherwise}")


def size_in_words(size: ResponseSize | None) -> str:
    return "none" if size is None else size if isinstance(size, str) else f"rank {size}"


class Responding(nn.Module):
    """What `self_tuning`, optimizers and penalties ask of a module with a response.

    Attributes:
        slot: Where the current sample is read.
        size: Size of its response; None if it has none.
        weight_rate: Hyperparameter that is the rate at which entries of the weights are dropped (DropConnect) in
            training mode, one draw for the whole batch. Default None: none are.
        dropout_rate: Hyperparameter that is the rate at which activations inside the layer are dropped, or None. Only a
            class that can do so has the attribute.
        path: Where the module is in its network, for messages.
    """

    slot: Slot
    size: ResponseSize | None
    weight_rate: str | None = None
    dropout_rate: str | None
    path: str = "a layer"

    @classmethod
    def why_not(cls, base: nn.Module) -> str | None:
        """Why this very `base`, though of the right type, cannot be converted; None if it can."""
        return None

    def take_over(self, base: nn.Module) -> None:
        """Have what torch's own code, the modules around and a user read of the base: its parameters and attributes."""
        for name, value in (vars(base) | base._parameters).items():
            if name not in vars(self):
                setattr(self, name, value)

    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        """The base's own parameters, by name, as they are at one response input, of shape `(1, n)`."""
        raise NotImplementedError

    def response_parameters(self) -> Iterator[nn.Parameter]:
        """Own parameters that describe the response; a child that responds gives its own."""
        raise NotImplementedError

    def squared_norm(self, response_input: Tensor | None) -> Tensor:
        """Squared Frobenius norm of the own effective weights at each row of the response input: shape `(rows,)`."""
        raise NotImplementedError

    def squared_norms(self, response_input: Tensor | None) -> dict[str, Tensor]:
        """The same for each own weight of the base, by name, for a penalty on a part of a layer."""
        return {"weight": self.squared_norm(response_input)}

    def weight_mask(self, like: Tensor) -> Tensor | None:
        """Which entries of a weight are kept, each with probability `1 - rate` and divided by it; None: all are.

        Drawn afresh at every call, in the shape and type of `like`, from torch's global generator.

        Raises:
            ValueError: the rate is drawn for each example, but the batch shares the weights.
        """
        if self.weight_rate is None or not self.training:
            return None
        rate = self.slot.sample[self.weight_rate]
        if rate.shape[0] != 1:
            raise ValueError(
                f"{type(self).__name__} drops weights at the rate {self.weight_rate!r}, of which there are "
                f"{rate.shape[0]} values: all examples of a batch share the weights, so it must have one. "
                f"Draw it per batch: SearchSpace(..., per_batch=[{self.weight_rate!r}])"
            )
        dtype = torch.promote_types(like.dtype, torch.float32)  # in half precision a small rate would be none at all
        keep = 1 - rate.to(dtype).clamp(max=MAX_RATE)
        return torch.rand_like(like, dtype=dtype).lt(keep).to(dtype).div_(keep).to(like.dtype)


class ResponseLayer(Responding):
    """Base of the layers with a single weight. A family says what its product is; this class does the rest.

    The base layer's own `weight` and `bias` parameters are taken over, not copied, so an optimizer or another module
    that holds them keeps them.

    Args:
        base: The layer to respond, with `weight` of any shape and `bias` of shape `(out,)` or None.
        inputs: Number n of response inputs.
        size: "full", "gate", a rank, or None for no response and no response parameters.
        slot: Where the current sample is read.
        generator: Random generator of the response parameters, so that they never shift the draws of the base
            parameters.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, base: nn.Module, inputs: int, size: ResponseSize | None, slot: Slot, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)  # not super(): a batch norm that responds stays a batch norm of torch as well
        weight = base.weight
        assert isinstance(weight, nn.Parameter)
        # A user's forward may read them (`self.fc.in_features`).
        for name in getattr(base, "__constants__", ()):
            setattr(self, name, getattr(base, name))
        self.slot = slot
        self.size = size
        self.weight = weight
        self.bias = getattr(base, "bias", None)
        self.train(base.training)
        if size is None:
            return
        out, *fan_in = self.by_unit(weight).shape
        bound = self.response_bound(weight)
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
            self.response_down = uniform(size, *fan_in)
            self.response_up = uniform(out, size, bound=math.sqrt(3 / size))
        if has_bias and size != "gate":
            self.response_bias = uniform(out)

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

    def by_unit(self, weight: Tensor) -> Tensor:
        """A weight with its output units as first axis: `(out, ...)`. Here it is so already."""
        return weight

    def as_weight(self, by_unit: Tensor) -> Tensor:
        """The way back from `by_unit`; axes of size one after the first may stay so, to be broadcast."""
        return by_unit

    def response_bound(self, weight: Tensor) -> float:
        """Bound of the uniform draw of V and b': that of torch's own draw of W."""
        return 1 / math.sqrt(weight[0].numel())

    grouped: bool = False
    """Whether output units see only their group of inputs: then `rank` inner units cannot serve them all."""

    # Evaluation ------------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor) -> Tensor:
        sample = self.slot.sample
        response_input = sample.response_input
        mask = self.weight_mask(self.weight)
        if response_input is None or self.size is None:
            return self.product(inputs, _masked(self.weight, mask), self.bias)
        if sample.linearise:
            return self._linearised(inputs, response_input, mask)
        if response_input.shape[0] == 1:
            return self._merged(inputs, response_input, mask)
        return self._per_example(inputs, response_input, mask)

    def _merged(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        """All examples share one response input: one product with merged weights costs the same as the base layer."""
        merged = self.merged(response_input)
        weight = merged["weight"]
        assert weight is not None
        return self.product(inputs, _masked(weight, mask), merged["bias"])

    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        unit, offset = self.gates(response_input)
        unit = self.as_weight(unit.view(-1, *[1] * (self.weight.dim() - 1)))
        weight = self.weight * (1 + unit) if self.size == "gate" else self.weight + unit * self.response_matrix()
        return {"weight": weight, "bias": None if self.bias is None or offset is None else self.bias + offset[0]}

    def _per_example(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        check_rows(response_input.shape[0], inputs, where=type(self).__name__)
        unit, offset = self.gates(response_input)
        weight = _masked(self.weight, mask)
        if self.size == "gate":
            outputs = self.product(inputs, weight, None)
            scale = self._spread(1 + unit, outputs)
            if self.bias is None or offset is None:
                return outputs * scale
            return torch.addcmul(self._spread(self.bias + offset, outputs), outputs, scale)
        # Two products: one with stacked weights was measured slower, for what it copies to stack and split.
        base = self.product(inputs, weight, self.bias)
        outputs = torch.addcmul(base, self._response(inputs, mask), self._spread(unit, base))
        return outputs if offset is None else outputs.add_(self._spread(offset, base))

    def _linearised(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        """Value of the base layer, and as tangent its first-order response: a dual tensor.

        The base parameters are constants here (see `training.rules.delta_stn`), so backward runs through tangents only.
        """
        check_rows(response_input.shape[0], inputs, where=type(self).__name__)
        primal, tangent = forward_ad.unpack_dual(inputs)  # type: ignore[no-untyped-call]
        unit, offset = self.gates(response_input)
        weight = _masked(self.weight, mask)
        outputs = self.product(primal, weight, self.bias)
        if self.size == "gate":
            # A copy where there is no bias: an in-place activation may write to the outputs.
            ungated = outputs.clone() if self.bias is None else outputs - self._spread(self.bias[None], outputs)
        else:
            ungated = self._response(primal, mask)
        gates = self._spread(unit, outputs)
        # Passes over the outputs are dear on a CPU: one for gates and incoming tangent together, one for the offset.
        if tangent is None:
            response = ungated * gates
        else:
            response = torch.addcmul(self.product(tangent, weight, None), ungated, gates)
        if offset is not None:
            response = response.add_(self._spread(offset, outputs))
        return cast(Tensor, forward_ad.make_dual(outputs, response))  # type: ignore[no-untyped-call]

    def _spread(self, values: Tensor, outputs: Tensor) -> Tensor:
        """`over_units` in the type of the outputs: under autocast, nothing as large as they are is widened."""
        return self.over_units(values.to(outputs.dtype), outputs)

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
        by_unit = self.by_unit(self.weight)
        return self.as_weight((self.response_up @ self.response_down.flatten(1)).view(by_unit.shape))

    def _response(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """V x for the full and the low-rank form, entries of V dropped by the mask of W."""
        if mask is not None or self.size == "full" or self.grouped:
            return self.product(inputs, _masked(self.response_matrix(), mask), None)
        return self.expand_units(self.product(inputs, self.as_weight(self.response_down), None))

    # For regularisers and optimizers ---------------------------------------------------------------------------

    def squared_norm(self, response_input: Tensor | None) -> Tensor:
        """Squared Frobenius norm of the effective weight W + diag(u) V of each row: shape `(rows,)`.

        Expanded by output unit, so no example's weight is ever formed.
        """
        base = self.by_unit(self.weight).flatten(1)
        base_norm = base.square().sum(1)
        if response_input is None or self.size is None:
            return base_norm.sum()[None]
        unit, _ = self.gates(response_input)
        if self.size == "gate":
            return (1 + unit).square() @ base_norm
        response = self.by_unit(self.response_matrix()).flatten(1)
        cross, response_norm = (base * response).sum(1), response.square().sum(1)
        return base_norm.sum() + unit @ (2 * cross) + unit.square() @ response_norm

    def response_parameters(self) -> Iterator[nn.Parameter]:
        """U and what describes V and b'; the base parameters are all others."""
        for name, parameter in self.named_parameters(recurse=False):
            if name not in ("weight", "bias"):
                yield parameter

    def extra_repr(self) -> str:
        inputs = "" if self.size is None else f", inputs={self.gate.shape[1]}"
        return f"weight={tuple(self.weight.shape)}, response={size_in_words(self.size)}{inputs}"


def _masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    return weight if mask is None else weight * mask


def _memory_format(weight: Tensor, axes: int) -> torch.memory_format:
    """Channels last where `weight` is, for a tensor of as many axes."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(axes, torch.contiguous_format)
    return wanted if weight.dim() == axes and weight.is_contiguous(memory_format=wanted) else torch.contiguous_format
