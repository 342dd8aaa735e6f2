"""The response form of the affine part of `nn.LayerNorm`, `RMSNorm`, `GroupNorm` and `BatchNorm1d`, `2d` and `3d`."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from tune_stn.nn.response import ResponseLayer, ResponseSize
from tune_stn.nn.slot import Slot, check_rows


class ResponseNorm(ResponseLayer):
    """A normalisation whose affine part responds; its statistics are those of the plain layer.

    With `n(x)` the normalised input, gamma the `weight` and beta the `bias`,

        y = n(x) * (gamma + u(h) * gamma') + beta + c(h) * beta',

    and in the gate form gamma' = gamma, beta' = 1. A unit's gamma is a single number, so a rank means "full" here. A
    class may have another gamma, such as 1 + `weight`.
    """

    def __init__(
        self, base: nn.Module, inputs: int, size: ResponseSize | None, slot: Slot, generator: torch.Generator
    ) -> None:
        super().__init__(base, inputs, "full" if isinstance(size, int) else size, slot, generator)

    def product(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The normalised inputs, times `weight` plus `bias`."""
        raise NotImplementedError

    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        scale, shift = self._response_of_affine(response_input)
        bias = None if self.bias is None or shift is None else self.bias + shift[0].view_as(self.bias)
        return {"weight": self.weight + scale[0].view_as(self.weight), "bias": bias}

    def _per_example(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        check_rows(response_input.shape[0], inputs, where=type(self).__name__)
        scale, shift = self._response_of_affine(response_input)
        bias = None if self.bias is None or shift is None else self.bias.flatten() + shift
        return self._affine(self.product(inputs, None, None), self.gamma.flatten() + scale, bias)

    def _linearised(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        check_rows(response_input.shape[0], inputs, where=type(self).__name__)
        # Torch carries the incoming tangent through the statistics.
        normal, tangent = forward_ad.unpack_dual(self.product(inputs, None, None))  # type: ignore[no-untyped-call]
        weight = self.gamma.view(1, -1)
        outputs = self._affine(normal, weight, None if self.bias is None else self.bias.view(1, -1))
        response = self._affine(normal, *self._response_of_affine(response_input))
        if tangent is not None:
            response = torch.addcmul(response, tangent, self._spread(weight, tangent))
        return cast(Tensor, forward_ad.make_dual(outputs, response))  # type: ignore[no-untyped-call]

    @property
    def gamma(self) -> Tensor:
        """What the normalised inputs are multiplied by without a response."""
        return self.weight

    def response_matrix(self) -> Tensor:
        return self.gamma if self.size == "gate" else super().response_matrix()

    def _response_of_affine(self, response_input: Tensor) -> tuple[Tensor, Tensor | None]:
        """`u * gamma'` and `c * beta'`, both `(rows, units)`; the latter None in a norm without bias."""
        unit, offset = self.gates(response_input)
        return unit * self.response_matrix().flatten(), offset

    def _affine(self, normal: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`normal * weight + bias` for weight and bias of shape `(rows, units)`."""
        weight = self._spread(weight, normal)
        return normal * weight if bias is None else torch.addcmul(self._spread(bias, normal), normal, weight)

    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        return values.view(*values.shape, *[1] * (outputs.dim() - 2))

    def by_unit(self, weight: Tensor) -> Tensor:
        return weight.view(-1, 1)

    def response_bound(self, weight: Tensor) -> float:
        return 1.0

    def squared_norm(self, response_input: Tensor | None) -> Tensor:
        """Zero: weight decay spares norms."""
        return self.weight.new_zeros(1 if response_input is None else response_input.shape[0])


class ResponseLayerNorm(ResponseNorm):
    """`nn.LayerNorm`, a unit being an element of the normalised shape; inputs `(batch, ..., *normalized_shape)`."""

    normalized_shape: tuple[int, ...]
    eps: float

    def product(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(inputs, self.normalized_shape, weight, bias, self.eps)

    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        between = outputs.dim() - 1 - len(self.normalized_shape)
        return values.view(values.shape[0], *[1] * between, *self.normalized_shape)


class ResponseRMSNorm(ResponseLayerNorm):
    """`nn.RMSNorm`, a unit being an element of the normalised shape; inputs `(batch, ..., *normalized_shape)`."""

    def product(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.rms_norm(inputs, self.normalized_shape, weight, self.eps)


class ResponseRMSNormOfPackages(ResponseRMSNorm):
    """The RMS norms that transformers and others have of their own, as `law_of` tells them; inputs `(batch, ..., n)`.

    Attributes:
        offset: What is added to `weight` to give gamma: 0, or 1 in the classes after Gemma's.
    """

    def __init__(
        self, base: nn.Module, inputs: int, size: ResponseSize | None, slot: Slot, generator: torch.Generator
    ) -> None:
        law = law_of(base)
        assert law is not None
        super().__init__(base, inputs, size, slot, generator)
        self.take_over(base)
        self.normalized_shape = tuple(self.weight.shape)
        self.eps, self.offset = law

    @property
    def gamma(self) -> Tensor:
        return self.weight + self.offset if self.offset else self.weight

    def product(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        normal = _by_root_mean_square(inputs, self.eps)
        if weight is None:
            return normal
        return normal * (weight + self.offset if self.offset else weight)


def law_of(norm: nn.Module) -> tuple[float, float] | None:
    """Epsilon and offset of a module that computes `x / rms(x) * (offset + weight)`; None of one that does not.

    Classes of the same look differ in what they compute, so a small input shows it.
    """
    eps = next((found for name in ("variance_epsilon", "eps", "epsilon") if (found := vars(norm).get(name))), None)
    parameters = dict(norm.named_parameters())
    if not isinstance(eps, float) or parameters.keys() != {"weight"} or any(True for _ in norm.children()):
        return None
    weight = parameters["weight"]
    needed = [p for p in inspect.signature(norm.forward).parameters.values() if p.default is p.empty]
    if weight.dim() != 1 or weight.is_meta or len(needed) != 1:
        return None
    with torch.no_grad():
        inputs = torch.linspace(-1, 2, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
        outputs = norm.forward(inputs)
        normal = _by_root_mean_square(inputs, eps)
        rounding = 4 * torch.finfo(weight.dtype).eps
        for offset in (0.0, 1.0):
            expected = normal * (weight + offset)
            if outputs.shape == expected.shape and torch.allclose(outputs, expected, rtol=rounding, atol=rounding):
                return eps, offset
    return None


def _by_root_mean_square(inputs: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)` over the last axis; in half precision, with the mean in single."""
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(inputs.dtype)


class ResponseGroupNorm(ResponseNorm):
    """`nn.GroupNorm`, a unit being a channel; inputs `(batch, channels, ...)`."""

    num_groups: int
    eps: float

    def product(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(inputs, self.num_groups, weight, bias, self.eps)


class _ResponseBatchNorm(ResponseNorm, nn.modules.batchnorm._BatchNorm):
    """A batch norm, a unit being a channel; inputs `(batch, channels, ...)`.

    In training the statistics are those of the whole batch, whatever its examples' hyperparameters. It stays a batch
    norm of torch, for all that looks for one: running statistics that are not to count a batch, a restart of them.
    """

    bias: Any

    def __init__(
        self,
        base: nn.modules.batchnorm._BatchNorm,
        inputs: int,
        size: ResponseSize | None,
        slot: Slot,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, inputs, size, slot, generator)
        for name, buffer in base._buffers.items():
            self.register_buffer(name, buffer)

    def product(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self._check_input_dim(inputs)  # type: ignore[no-untyped-call]
        momentum = self.momentum or 0.0
        counting = self.training and self.track_running_stats
        if counting and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a plain average, for which torch too waits for the device
                momentum = 1 / float(self.num_batches_tracked)
        mean, variance = (self.running_mean, self.running_var) if counting or not self.training else (None, None)
        by_batch = self.training or mean is None
        return F.batch_norm(inputs, mean, variance, weight, bias, by_batch, momentum, self.eps)


class ResponseBatchNorm1d(_ResponseBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d`."""


class ResponseBatchNorm2d(_ResponseBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d`."""


class ResponseBatchNorm3d(_ResponseBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d`."""
