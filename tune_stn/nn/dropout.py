"""Dropout layers that read their rate from the current sample.

`self_tuning` puts them in the place of a network's dropout modules, by the table `DROPOUTS` of `nn.registry`. Other
classes (timm's DropPath, torchvision's StochasticDepth, the LockedDropout of the AWD-LSTM code) join it by a line:

    DROPOUTS[DropPath] = BranchDropout
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn.modules import branch_mask_shape, locked_mask_shape
from tune_stn.nn.numbers import MAX_RATE, SharedRate
from tune_stn.nn.slot import Slot, check_rows


class UnitDropout(nn.Module):
    """Bernoulli dropout of every unit with its own example's rate, kept units divided by `1 - rate`.

    Identity in eval mode. Inputs of any shape `(batch, ...)`; draws come from torch's global generator.

    Attributes:
        number: The name that the replaced module has for its rate.
        path: Where the module is in its network, for messages.
    """

    batch_axis = 0
    number = "p"
    path = "dropout"

    def __init__(self, rate: str, slot: Slot) -> None:
        super().__init__()
        self.rate = rate
        self.slot = slot

    @classmethod
    def in_place_of(cls, base: nn.Module, rate: str, slot: Slot) -> Self:
        """The one that replaces `base`, in the same mode."""
        return cls(rate, slot).train(base.training)

    @property
    def p(self) -> float:
        """The rate as one number, for attention code that hands it to a fused kernel.

        Raises:
            ValueError: Each example has a rate of its own.
        """
        return SharedRate(f"{self.path}.{self.number}", self.rate, self.slot)()

    def forward(self, inputs: Tensor, *_: Any, **__: Any) -> Tensor:
        """Whatever else the replaced module was given is of no use here (the AWD-LSTM code gives it the rate)."""
        if not self.training:
            return inputs
        rates, axis = self.slot.sample[self.rate], self.batch_axis
        where = f"dropout {self.rate!r}" + (f" with the batch on axis {axis}, here shown first," if axis else "")
        check_rows(rates.shape[0], inputs.movedim(axis, 0), where=where)
        # In half precision a small rate would be none at all.
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        keep = 1 - rates.to(dtype).view(*[1] * axis, -1, *[1] * (inputs.dim() - axis - 1)).clamp(max=MAX_RATE)
        noise = torch.rand(self.mask_shape(inputs), device=inputs.device, dtype=dtype)
        mask = noise.lt(keep).to(dtype).div_(keep).to(inputs.dtype)
        return _masked_dual(inputs, mask) if self.slot.sample.linearise else inputs * mask

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        """One draw for each unit."""
        return tuple(inputs.shape)

    def extra_repr(self) -> str:
        return f"rate={self.rate!r}"


def _masked_dual(inputs: Tensor, mask: Tensor) -> Tensor:
    """`inputs * mask` of a dual tensor, part by part: torch would look up the shape of the mask's own tangent, zero, in
    Python, which takes longer than all the rest of a small layer.
    """
    primal, tangent = forward_ad.unpack_dual(inputs)  # type: ignore[no-untyped-call]
    if tangent is None:
        return inputs * mask
    return cast(Tensor, forward_ad.make_dual(primal * mask, tangent * mask))  # type: ignore[no-untyped-call]


class ChannelDropout(UnitDropout):
    """Dropout of whole channels (`nn.Dropout1d/2d/3d`): inputs `(batch, channels, ...)`."""

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        """One draw for each channel."""
        return (*inputs.shape[:2], *[1] * (inputs.dim() - 2))


class SequenceDropout(UnitDropout):
    """The reading form of `LockedDropout`: one mask for each example and unit, the same at all times.

    Inputs `(time, batch, ...)`, or `(batch, time, ...)` where the replaced module has a true `batch_first`.
    """

    def __init__(self, rate: str, slot: Slot, *, batch_first: bool = False) -> None:
        super().__init__(rate, slot)
        self.batch_axis = 0 if batch_first else 1

    @classmethod
    def in_place_of(cls, base: nn.Module, rate: str, slot: Slot) -> Self:
        return cls(rate, slot, batch_first=bool(getattr(base, "batch_first", False))).train(base.training)

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        return locked_mask_shape(inputs, batch_first=self.batch_axis == 0)


class BranchDropout(UnitDropout):
    """The reading form of `StochasticDepth`: an example's whole branch is dropped."""

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        return branch_mask_shape(inputs)
