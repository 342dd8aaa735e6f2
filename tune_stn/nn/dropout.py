"""Dropout layers that read their rate from the current sample.

`self_tuning` puts them in the place of a network's dropout modules, by the table `DROPOUTS` of `nn.registry`. Other
classes (the LockedDropout of the AWD-LSTM code, say) join it by a line:

    DROPOUTS[RNNDropout] = SequenceDropout
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
        sample, axis = self.slot.sample, self.batch_axis
        rates = sample[self.rate]
        if rates.shape[0] != 1:
            where = f"dropout {self.rate!r}" + (f" with the batch on axis {axis}, here shown first," if axis else "")
            check_rows(rates.shape[0], inputs.movedim(axis, 0), where=where)
        # In half precision a small rate would be none at all.
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        keep = 1 - rates.to(dtype).view(*[1] * axis, -1, *[1] * (inputs.dim() - axis - 1)).clamp(max=MAX_RATE)
        noise = torch.rand(self.mask_shape(inputs), device=inputs.device, dtype=dtype)
        factor, offset = self.noise(self.kept(noise, keep), keep)
        factor = factor.to(inputs.dtype)
        outputs = _masked_dual(inputs, factor) if sample.linearise else inputs * factor
        return outputs if offset is None else outputs + offset.to(inputs.dtype)

    def kept(self, noise: Tensor, keep: Tensor) -> Tensor:
        """1 where a unit is kept, 0 where it is dropped; in the memory of the noise, which is faster than by way of
        true and false.
        """
        return noise.lt_(keep)

    def noise(self, kept: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the inputs are multiplied by, and what is added to them, if anything.

        Args:
            kept: 1 where a unit is kept, 0 where it is dropped, in the shape of the mask.
            keep: Probability that it is kept, of each example, to be broadcast over `kept`.
        """
        return kept.div_(keep), None

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
    """Dropout of whole channels (`nn.Dropout1d/2d/3d`): inputs `(batch, channels, ...)`.

    Attributes:
        unbatched: Number of axes of an input whose first axis torch takes for the channels, with no batch before it;
            None: there is no such number.
    """

    unbatched: int | None = None

    @classmethod
    def in_place_of(cls, base: nn.Module, rate: str, slot: Slot) -> Self:
        dropout = super().in_place_of(base, rate, slot)
        dropout.unbatched = 2 if isinstance(base, nn.Dropout1d) else 4 if isinstance(base, nn.Dropout3d) else None
        return dropout

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        """One draw for each channel."""
        channels = inputs.shape[: 1 if inputs.dim() == self.unbatched else 2]
        return (*channels, *[1] * (inputs.dim() - len(channels)))


# What SELU tends to for large negative inputs (arXiv 1706.02515): minus its scale times its alpha.
SATURATED = -1.7580993408473766


class AlphaDropout(UnitDropout):
    """The reading form of `nn.AlphaDropout`: units are set to where SELU saturates, and mean and variance are kept.

    With s that value and q the probability that a unit is kept, `a * (x * kept + s * (1 - kept)) + b`, where
    a = (q + s^2 q (1 - q))^-1/2 and b = -a s (1 - q) (arXiv 1706.02515).
    """

    def noise(self, kept: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = (keep * (1 + SATURATED**2 * (1 - keep))).rsqrt()
        return kept * scale, (keep - kept) * (scale * SATURATED)


class ChannelAlphaDropout(AlphaDropout):
    """The reading form of `nn.FeatureAlphaDropout`: as `AlphaDropout`, of whole channels."""

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        """One draw for each channel."""
        if inputs.dim() < 2:
            raise ValueError(
                f"feature alpha dropout got an input of shape {tuple(inputs.shape)}; accepted is (batch, channels, ...)"
            )
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
    """The reading form of `StochasticDepth`, of ours and of others, and of DropPath: drops whole branches.

    Attributes:
        rescales: Whether kept branches are divided by the probability that they are.
        together: Whether one draw decides for all examples of the batch, each still at its own rate.
    """

    rescales = True
    together = False

    @classmethod
    def in_place_of(cls, base: nn.Module, rate: str, slot: Slot) -> Self:
        dropout = super().in_place_of(base, rate, slot)
        dropout.number = "drop_prob" if hasattr(base, "drop_prob") else "p"
        dropout.rescales = bool(getattr(base, "scale_by_keep", True))  # timm's
        dropout.together = getattr(base, "mode", "row") == "batch"  # torchvision's
        return dropout

    @property
    def drop_prob(self) -> float:
        """The rate as one number, by the name that DropPath has for it."""
        return self.p

    def kept(self, noise: Tensor, keep: Tensor) -> Tensor:
        return noise.lt(keep).to(keep.dtype)  # of one draw for the batch, at the rate of each example

    def noise(self, kept: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        return (kept.div_(keep) if self.rescales else kept), None

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        return (1,) * inputs.dim() if self.together else branch_mask_shape(inputs)
