"""What the inherited tests work on: a plain layer, its converted form, and ways to evaluate both alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn.response import Responding
from tune_stn.nn.slot import Slot
from tune_stn.space.sample import Sample


@dataclass
class Case:
    """A plain layer, its converted form, and what the latter takes; made by `ResponseLayerContract.case`.

    Attributes:
        inputs: Inputs of the layer, shape `(batch, ...)`.
        rows: Response input of each example, shape `(batch, n)`.
    """

    call: Callable[[nn.Module, Tensor], Tensor]
    base: nn.Module
    layer: nn.Module
    inputs: Tensor
    rows: Tensor

    def __call__(self, rows: Tensor | None, inputs: Tensor | None = None, *, linearise: bool = False) -> Tensor:
        """Outputs of the converted layer at a response input, with the same noise at each call."""
        torch.manual_seed(5)
        slot: Slot = self.layer.slot  # type: ignore[assignment]
        with slot.using(Sample({}, rows, linearise)):
            return self.call(self.layer, self.inputs if inputs is None else inputs)

    def plain(self, inputs: Tensor | None = None) -> Tensor:
        torch.manual_seed(5)
        return self.call(self.base, self.inputs if inputs is None else inputs)

    def linearised(self, rows: Tensor, tangent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value and tangent; the base parameters are constants, as in a response step of Delta-STN."""
        for parameter in self.base_parameters():
            parameter.requires_grad_(False)
        with forward_ad.dual_level():
            inputs = self.inputs
            if tangent is not None:
                inputs = forward_ad.make_dual(inputs, tangent)  # type: ignore[no-untyped-call]
            dual = self(rows, inputs, linearise=True)
            value, derivative = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
        return value, torch.zeros_like(value) if derivative is None else derivative

    def to(self, target: str | torch.dtype) -> Case:
        """The same on a device or in a dtype; the layers themselves move there."""
        keeps = isinstance(target, torch.dtype) and not self.inputs.is_floating_point()
        inputs = self.inputs if keeps else self.inputs.to(target)
        return replace(
            self, base=self.base.to(target), layer=self.layer.to(target), inputs=inputs, rows=self.rows.to(target)
        )

    def tangents(self) -> list[Tensor | None]:
        """What may come in from the layers before: none, and one for inputs that can have it."""
        return [None, self.inputs.cos()] if self.inputs.is_floating_point() else [None]

    def response_parameters(self) -> list[nn.Parameter]:
        return [p for m in self.layer.modules() if isinstance(m, Responding) for p in m.response_parameters()]

    def base_parameters(self) -> list[nn.Parameter]:
        response = {id(parameter) for parameter in self.response_parameters()}
        return [parameter for parameter in self.layer.parameters() if id(parameter) not in response]


def gradients(outputs: Tensor, wanted: Iterable[Tensor]) -> list[Tensor]:
    """Of a loss that treats no two outputs alike."""
    factors = torch.linspace(0.5, 1.5, outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    loss = (outputs * factors.view_as(outputs)).sin().sum()
    return list(torch.autograd.grad(loss, list(wanted), materialize_grads=True))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the order in which sums are taken."""
    rtol, atol = (1e-9, 1e-11) if expected.dtype == torch.float64 else (1e-4, 1e-5)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
