"""Bytes to the numbers that networks like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalise:
    """`(pixels / 255 - mean) / std` in each channel, in one pass over a batch.

    The call takes uint8 images of shape `(batch, channels, height, width)` and gives float32 ones.

    Attributes:
        mean: Mean of each channel, in units of the full range.
        std: Standard deviation of each channel, in units of the full range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        shift, factor = _constants(self.mean, self.std, pixels.device)
        return torch.addcmul(shift, pixels, factor)


@lru_cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What is added to the pixels and what they are multiplied by; kept, for a copy at every batch would halt a GPU."""
    centre, spread = (torch.tensor(each, dtype=torch.float64).view(-1, 1, 1) for each in (mean, std))
    return (-centre / spread).to(device, torch.float32), (1 / (255 * spread)).to(device, torch.float32)
