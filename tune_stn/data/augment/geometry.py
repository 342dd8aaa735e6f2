"""Images moved, turned, scaled, sheared and mirrored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_stn.data.augment.augmentation import check_floating, check_some, over_examples, value_or_zero
from tune_stn.space.sample import Sample


@dataclass(frozen=True, kw_only=True)
class RandomAffine:
    """Shears, scales, turns and moves each image, in this order and around its centre.

    The call takes finite floating-point images of shape `(batch, channels, height, width)`. All four make one affine
    map, and pixels are interpolated once, bilinearly. With u uniform in [-1, 1], drawn for each image and each use,

    * rows are sheared by an angle of u s degrees,
    * sides are multiplied by (1 + s)^u,
    * the image is turned by u s degrees,
    * and moved by u s of its width and by another u s of its height.

    An image with no change by any of them is left exactly as it is.

    Attributes:
        translation: Name of the hyperparameter that is s, `>= 0`. Default None: s is 0.
        rotation: Name of the hyperparameter that is s, `>= 0`; 180 reaches all angles. Default None: s is 0.
        scale: Name of the hyperparameter that is s, `>= 0`. Default None: s is 0.
        shear: Name of the hyperparameter that is s, in [0, 90). Default None: s is 0.
        padding: What lies around an image: "zeros", or "border", which repeats its nearest pixel. Default "zeros".

    Raises:
        ValueError: no hyperparameter is named, or another padding; in the call, images or values of a shape not
            described here, or images that are not floating point.
    """

    translation: str | None = None
    rotation: str | None = None
    scale: str | None = None
    shear: str | None = None
    padding: Literal["zeros", "border"] = "zeros"

    def __post_init__(self) -> None:
        check_some(self.names, "an affine map")
        if self.padding not in {"zeros", "border"}:
            raise ValueError(f"padding={self.padding!r}: accepted are 'zeros' and 'border'")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.translation, self.rotation, self.scale, self.shear) if name is not None)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        check_floating(inputs)
        if inputs.ndim != 4:
            raise ValueError(f"needs (batch, channels, height, width), not {tuple(inputs.shape)}")
        draws = 2 * torch.rand(5, len(inputs), dtype=torch.float32, device=inputs.device) - 1
        return moved(
            inputs,
            translation=value_or_zero(sample, self.translation, inputs) * draws[:2],
            rotation=value_or_zero(sample, self.rotation, inputs) * draws[2],
            scale=(1 + value_or_zero(sample, self.scale, inputs)) ** draws[3],
            shear=value_or_zero(sample, self.shear, inputs) * draws[4],
            padding=self.padding,
        )


def moved(
    images: Tensor, *, translation: Tensor, rotation: Tensor, scale: Tensor, shear: Tensor, padding: str
) -> Tensor:
    """Images under given affine maps; see `RandomAffine`.

    Args:
        images: Images of shape `(batch, channels, height, width)`.
        translation: Shift to the right and down, as shares of width and height, shape `(2, batch)`.
        rotation: Angle in degrees, clockwise, shape `(batch,)`.
        scale: Factor of the sides, shape `(batch,)`.
        shear: Angle in degrees, shape `(batch,)`; a positive one moves rows to the right the further down they are.
        padding: The `padding_mode` of `torch.nn.functional.grid_sample`.
    """
    height, width = images.shape[2:]
    precise = torch.promote_types(images.dtype, torch.float32)
    changed = (translation != 0).any(0) | (rotation != 0) | (scale != 1) | (shear != 0)

    def centres(pixels: int, shift: Tensor) -> Tensor:
        """Of output pixels before the translation, in units of half the image, shape `(batch, pixels)`."""
        middle = (2 * torch.arange(pixels, device=images.device) + 1) / pixels - 1
        return middle - 2 * shift[:, None]

    x, y = centres(width, translation[0]), centres(height, translation[1])
    # Where an output pixel comes from: rotation, scale and shear undone, in this order.
    cos, sin = torch.cos(torch.deg2rad(rotation)) / scale, torch.sin(torch.deg2rad(rotation)) / scale
    slope = torch.tan(torch.deg2rad(shear))
    by_x = torch.stack([cos + slope * sin, -sin * (width / height)], 1)  # of source x and source y, (batch, 2)
    by_y = torch.stack([(sin - slope * cos) * (height / width), cos], 1)
    # A span of columns plus a span of rows: one pass over the grid, (batch, 2, height, width).
    source = (by_x[:, :, None] * x[:, None])[:, :, None, :] + (by_y[:, :, None] * y[:, None])[:, :, :, None]
    result = F.grid_sample(
        images.to(precise),
        source.permute(0, 2, 3, 1).to(precise),
        padding_mode=padding,
        align_corners=False,
    )
    # Rounding of the grid leaves no image quite the same. A lerp, for it is several times faster than where on a CPU.
    return torch.lerp(images, result.to(images.dtype), over_examples(changed.to(images.dtype), images))


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors each image, left and right exchanged, with probability 1/2.

    It has no hyperparameter. The call takes finite floating-point images of shape `(batch, ..., width)`.

    Raises:
        ValueError: in the call, images that are not floating point.
    """

    names: tuple[str, ...] = field(default=(), init=False)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        check_floating(inputs)
        mirrored = torch.rand(len(inputs), device=inputs.device) < 0.5
        return torch.lerp(inputs, inputs.flip(-1), over_examples(mirrored.to(inputs.dtype), inputs))
