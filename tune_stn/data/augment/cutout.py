"""Squares cut out of images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tune_stn.data.augment.augmentation import value_of
from tune_stn.space.sample import Sample


@dataclass(frozen=True)
class Cutout:
    """Erases squares around uniformly drawn pixels (DeVries and Taylor 2017, arXiv 1708.04552).

    The call takes finite images of shape `(batch, ..., height, width)`. Squares are clipped at the border and
    the same in all channels of an image. No holes, or a length of 0, leave an image as it is.

    Attributes:
        holes: Name of the integer hyperparameter that is the number of squares.
        length: Name of the integer hyperparameter that is their side in pixels. An odd square lies evenly around its
            centre, an even one reaches one pixel further up and left.
        max_holes: Number of squares drawn per image, `1 … 31`; a larger value of `holes` is cut down to it.

    Raises:
        ValueError: `max_holes` out of range; in the call, inputs or values of a shape not described here.
    """

    holes: str = "cutout_holes"
    length: str = "cutout_length"
    max_holes: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.max_holes <= 31:  # one bit per square in an int32, see `erased_pixels`
            raise ValueError(f"max_holes={self.max_holes}: must be in 1 … 31")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.holes, self.length)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        if inputs.ndim < 3:
            raise ValueError(f"cutout needs (batch, ..., height, width), not {tuple(inputs.shape)}")
        holes = value_of(sample, self.holes, inputs).view(-1, 1)
        length = value_of(sample, self.length, inputs).view(-1, 1)
        height, width = inputs.shape[-2:]
        drawn = (len(inputs), self.max_holes)
        row_centres = torch.randint(height, drawn, device=inputs.device)
        column_centres = torch.randint(width, drawn, device=inputs.device)
        erased = erased_pixels(row_centres, column_centres, holes, length, size=(height, width))
        # A product, for it is several times faster than masked_fill or where on a CPU.
        kept = erased.logical_not().to(inputs.dtype)
        return inputs * kept.view(len(inputs), *[1] * (inputs.ndim - 3), height, width)


def erased_pixels(
    row_centres: Tensor, column_centres: Tensor, holes: Tensor, length: Tensor, *, size: tuple[int, int]
) -> Tensor:
    """Pixels covered by the first `holes` of the squares at the given centres.

    A square is a span of rows times a span of columns. Bit k of a row says whether square k spans it, and so
    for columns; a pixel is covered if its row and its column share a bit. So the one pass over all pixels is
    a bitwise and, whatever the number of squares.

    Args:
        row_centres: Rows of the centres, shape `(batch, max_holes)`.
        column_centres: Columns of the centres, shape `(batch, max_holes)`.
        holes: Number of squares that count, shape `(batch, 1)` or `(1, 1)`.
        length: Side of the squares in pixels, shape `(batch, 1)` or `(1, 1)`.
        size: Height and width of the images in pixels.

    Returns:
        Bool tensor of shape `(batch, height, width)`.
    """
    square = torch.arange(row_centres.shape[1], device=row_centres.device)
    bit = (1 << square).int()
    side = torch.where(square < holes, length, 0).long()  # an unused square has no side

    def spans(centres: Tensor, extent: int) -> Tensor:
        start = (centres - side // 2).unsqueeze(-1)
        pixel = torch.arange(extent, device=centres.device)
        inside = (pixel >= start) & (pixel < start + side.unsqueeze(-1))  # (batch, max_holes, extent)
        return (inside * bit.unsqueeze(-1)).sum(1, dtype=torch.int32)

    height, width = size
    return (spans(row_centres, height).unsqueeze(2) & spans(column_centres, width).unsqueeze(1)).bool()
