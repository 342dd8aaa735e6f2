"""Dropout layers that read their rate from the current sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune_stn.nn.slot import Slot, per_row

# Above it, the few units kept are scaled up so far that training diverges before the gradient can turn back.
MAX_RATE = 0.95


class UnitDropout(nn.Module):
    """Bernoulli dropout of every unit with its own example's rate, kept units divided by `1 - rate`.

    Identity in eval mode. Inputs of any shape `(batch, ...)`; draws come from torch's global generator.
    """

    def __init__(self, rate: str, slot: Slot) -> None:
        super().__init__()
        self.rate = rate
        self.slot = slot

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        keep = 1 - per_row(self.slot.sample[self.rate], inputs, where=f"dropout {self.rate!r}").clamp(max=MAX_RATE)
        noise = torch.rand(self.mask_shape(inputs), device=inputs.device, dtype=inputs.dtype)
        return inputs * noise.lt(keep).to(inputs.dtype).div_(keep)

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        """One draw for each unit."""
        return tuple(inputs.shape)

    def extra_repr(self) -> str:
        return f"rate={self.rate!r}"


class ChannelDropout(UnitDropout):
    """Dropout of whole channels (`nn.Dropout1d/2d/3d`): inputs `(batch, channels, ...)`."""

    def mask_shape(self, inputs: Tensor) -> tuple[int, ...]:
        """One draw for each channel."""
        return (*inputs.shape[:2], *[1] * (inputs.dim() - 2))
