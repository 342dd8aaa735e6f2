"""Brightness, contrast, saturation and hue, as one affine map of each image's pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tune_stn.data.augment.augmentation import check_floating, check_some, value_or_zero
from tune_stn.space.sample import Sample

# Luma (that of ITU-R BT.601 too) and the two chroma axes of YIQ (NTSC 1953) in RGB.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Changes brightness, contrast, saturation and hue of each image, in this order.

    The call takes floating-point images of shape `(batch, channels, height, width)`, RGB or, for brightness and
    contrast alone, grey. With u uniform in [-1, 1], drawn for each image and each of the four, pixels in [0, 1] are

    * multiplied by the brightness factor 1 + u s,
    * moved away from the image's mean luma by the contrast factor 1 + u s,
    * moved away from their own luma by the saturation factor 1 + u s,
    * turned around the luma axis of YIQ by u s of a full turn,

    and then clamped to [0, 1], once. Each of the four is linear in the pixels, so a batch is passed over once for
    all of them; that is why hue is a rotation, where the usual jitter goes through HSV and clamps after each. An
    image with no change to any of them is left exactly as it is, whatever its range.

    Attributes:
        brightness: Name of the hyperparameter that is s, `>= 0`; a factor that would be negative is drawn from [0, 1 +
            s]. Default None: s is 0.
        contrast: Name of the hyperparameter that is s, `>= 0`, with factors as for `brightness`. Default None: s is 0.
        saturation: Name of the hyperparameter that is s, `>= 0`, with factors as for `brightness`. Default None: s is
            0.
        hue: Name of the hyperparameter that is s, in [0, 0.5]. Default None: s is 0.
        mean: The number, in [0, 1], that was subtracted from the pixels of each channel. Default 0 for three channels.
        std: The number by which the pixels of each channel were then divided. Default 1 for three channels.

    Raises:
        ValueError: no hyperparameter is named, or `mean` and `std` are not of one or three channels; in the call,
            images or values of a shape not described here, or images that are not floating point.
    """

    brightness: str | None = None
    contrast: str | None = None
    saturation: str | None = None
    hue: str | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        check_some(self.names, "a colour jitter")
        if len(self.mean) != len(self.std) or len(self.mean) not in {1, 3} or min(self.std) <= 0:
            raise ValueError(
                f"mean={self.mean}, std={self.std}: accepted are three channels (RGB) or one (grey), std above 0"
            )
        if len(self.mean) == 1 and (self.saturation or self.hue):
            raise ValueError("grey images have no saturation and no hue: leave both None")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.brightness, self.contrast, self.saturation, self.hue) if name is not None)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        check_floating(inputs)
        if inputs.ndim != 4 or inputs.shape[1] != len(self.mean):
            raise ValueError(
                f"needs (batch, {len(self.mean)}, height, width), as many channels as mean={self.mean} has, "
                f"not {tuple(inputs.shape)}"
            )
        draws = torch.rand(4, len(inputs), dtype=torch.float32, device=inputs.device)

        def factor(name: str | None, draw: Tensor) -> Tensor:
            strength = value_or_zero(sample, name, inputs)
            low = (1 - strength).clamp(min=0)
            return low + (1 + strength - low) * draw

        return jittered(
            inputs,
            brightness=factor(self.brightness, draws[0]),
            contrast=factor(self.contrast, draws[1]),
            saturation=factor(self.saturation, draws[2]),
            turn=value_or_zero(sample, self.hue, inputs) * (2 * draws[3] - 1),
            mean=self.mean,
            std=self.std,
        )


def jittered(
    images: Tensor,
    *,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    turn: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """Images at given factors and turns of hue, each of shape `(batch,)`; see `ColourJitter`.

    With L the projection on grey, K the generator of rotations of the chroma plane and θ the angle, saturation and
    hue together are `L + s (cos θ (I − L) + sin θ K)`. So what all four add to a pixel is a sum of I, I − L, K and a
    constant, the share of the mean luma, with the weights below: exactly nothing where nothing is to change.
    """
    basis, luma, low, high = _constants(mean, std, images.device)
    gain, angle = brightness * contrast, 2 * math.pi * turn
    mean_luma = (images.mean((2, 3), dtype=torch.float32) * luma[:-1]).sum(1) + luma[-1]
    weights = torch.stack(
        [
            gain - 1,
            gain * (saturation * torch.cos(angle) - 1),
            gain * saturation * torch.sin(angle),
            (1 - contrast) * brightness * mean_luma,
        ],
        dim=1,
    )
    # Sums of products here and below: cost is counted in matrix products, and augmentation is no part of it.
    added = (weights[:, :, None, None] * basis).sum(1).to(images.dtype).unsqueeze(-1)
    result = images + added[:, :, -1:]
    for channel in range(len(mean)):
        result.addcmul_(added[:, :, channel : channel + 1], images[:, channel : channel + 1])
    changed = (weights != 0).any(1, keepdim=True)
    lowest, highest = torch.where(changed, low, -torch.inf), torch.where(changed, high, torch.inf)
    result.clamp_min_(lowest.to(images.dtype)[:, :, None, None])
    return result.clamp_max_(highest.to(images.dtype)[:, :, None, None])


@lru_cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Kept, for a copy to the device at every batch would halt it.

    Returns:
        The four summands of `jittered`, as matrices that map C normalised channels and a 1 to C channels, of shape
        `(4, C, C + 1)`; luma as a row of such a matrix, `(C + 1,)`; the normalised pixels of 0 and of 1, `(C,)`.
    """
    centre, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    eye = torch.eye(len(mean), dtype=torch.float64)
    luma, turn = torch.ones(1, dtype=torch.float64), torch.zeros_like(eye)
    if len(mean) == 3:
        yiq = torch.tensor(YIQ, dtype=torch.float64)
        luma, turn = yiq[0], torch.linalg.solve(yiq, torch.stack([0 * yiq[0], -yiq[2], yiq[1]]))
    matrices = torch.stack([eye, eye - luma, turn, torch.zeros_like(eye)])
    constants = torch.tensor([0, 0, 0, 1])[:, None] + (matrices * centre).sum(2)
    basis = torch.cat([matrices * spread, constants[:, :, None]], 2) / spread[:, None]
    luma_row = torch.cat([luma * spread, (luma * centre).sum()[None]])
    return tuple(t.to(device, torch.float32) for t in (basis, luma_row, -centre / spread, (1 - centre) / spread))
