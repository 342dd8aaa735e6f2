"""Augmentations with hyperparameters of their own for each example, on the batch tensor and its device.

An augmentation knows its hyperparameters by name and reads their values from a `Sample`: shape `(batch,)`,
or `(1,)` where the batch shares one. Draws come from the global generator of the inputs' device, which the
training loop seeds, and their number does not depend on the values: a seed gives all values the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tune_stn.space.sample import Sample


class Augmentation(Protocol):
    """What a task lists: `names` it reads, and a call that returns new inputs of the same shape and type."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor: ...


@dataclass(frozen=True)
class Cutout:
    """Erases squares around uniformly drawn pixels (DeVries and Taylor 2017, arXiv 1708.04552).

    The call takes finite images of shape `(batch, ..., height, width)`. Squares are clipped at the border and
    the same in all channels of an image. No holes, or a length of 0, leave an image as it is.

    Attributes:
        holes: name of the number of squares, an integer value.
        length: name of their side in pixels, an integer value. An odd square lies evenly around its centre,
            an even one reaches one pixel further up and left.
        max_holes: squares drawn per image, `1 … 31`; a larger value of `holes` is cut down to it.

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
        holes = _per_example(sample, self.holes, inputs).view(-1, 1)
        length = _per_example(sample, self.length, inputs).view(-1, 1)
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
        row_centres: shape `(batch, max_holes)`.
        column_centres: shape `(batch, max_holes)`.
        holes: shape `(batch, 1)` or `(1, 1)`.
        length: shape `(batch, 1)` or `(1, 1)`.
        size: height and width.

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


@dataclass(frozen=True)
class InputDropout:
    """Zeroes each element with the example's probability p and divides the others by `1 − p`.

    The call takes floating-point inputs of shape `(batch, ...)`.

    Attributes:
        rate: name of p; a value above 0.95 acts as 0.95, so that the factor stays finite.

    Raises:
        ValueError: in the call, inputs that are not floating point, or a value of a shape not described here.
    """

    rate: str = "input_dropout"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.rate,)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        _check_floating(inputs)
        rate = _per_example(sample, self.rate, inputs).clamp(0.0, 0.95)
        draws = torch.rand(inputs.shape, dtype=torch.float32, device=inputs.device)
        kept = draws.ge_(rate).to(inputs.dtype)  # in place: the draws are the dearest part of a dropout
        return kept.mul_((1 / (1 - rate)).to(inputs.dtype)).mul_(inputs)


@dataclass(frozen=True)
class InputScale:
    """Multiplies each example by one factor, uniform in `[1 / (1 + s), 1 + s]`.

    MacKay et al. (2019, arXiv 1903.03088) tune it on CIFAR-10, with s in (0, 0.3).
    The call takes floating-point inputs of shape `(batch, ...)`.

    Attributes:
        scale: name of s, a value `>= 0`; 0 leaves an example as it is.

    Raises:
        ValueError: in the call, inputs that are not floating point, or a value of a shape not described here.
    """

    scale: str = "input_scale"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.scale,)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        _check_floating(inputs)
        high = 1 + _per_example(sample, self.scale, inputs)
        low = 1 / high
        draws = torch.rand(len(inputs), *[1] * (inputs.ndim - 1), dtype=torch.float32, device=inputs.device)
        return inputs * (low + (high - low) * draws).to(inputs.dtype)


def _per_example(sample: Sample, name: str, inputs: Tensor) -> Tensor:
    """The value `name` with axes of length 1 appended, to broadcast against `(batch, ...)`."""
    value = sample[name]
    # Checked here, for one image and many values would broadcast to many images without a word.
    if tuple(value.shape) not in {(1,), (len(inputs),)}:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, but the batch has {len(inputs)} examples")
    return value.view(-1, *[1] * (inputs.ndim - 1))


def _check_floating(inputs: Tensor) -> None:
    if not inputs.is_floating_point():
        raise ValueError(f"needs floating-point inputs, not {inputs.dtype}")
