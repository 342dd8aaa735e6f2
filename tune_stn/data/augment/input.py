"""Noise on inputs of any shape: dropout, scale, Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tune_stn.data.augment.augmentation import check_floating, over_examples, value_of
from tune_stn.space.sample import Sample


@dataclass(frozen=True)
class InputDropout:
    """Zeroes each element with the example's probability p and divides the others by `1 − p`.

    The call takes floating-point inputs of shape `(batch, ...)`.

    Attributes:
        rate: Name of the hyperparameter that is p; a value above 0.95 acts as 0.95, so that the factor stays finite.

    Raises:
        ValueError: in the call, inputs that are not floating point, or a value of a shape not described here.
    """

    rate: str = "input_dropout"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.rate,)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        check_floating(inputs)
        rate = over_examples(value_of(sample, self.rate, inputs).clamp(0.0, 0.95), inputs)
        draws = torch.rand(inputs.shape, dtype=torch.float32, device=inputs.device)
        kept = draws.ge_(rate).to(inputs.dtype)  # in place: the draws are the dearest part of a dropout
        return inputs * kept.mul_((1 / (1 - rate)).to(inputs.dtype))


@dataclass(frozen=True)
class InputScale:
    """Multiplies each example by one factor, uniform in `[1 / (1 + s), 1 + s]`.

    MacKay et al. (2019, arXiv 1903.03088) tune it on CIFAR-10, with s in (0, 0.3).
    The call takes floating-point inputs of shape `(batch, ...)`.

    Attributes:
        scale: Name of the hyperparameter that is s, `>= 0`; 0 leaves an example as it is.

    Raises:
        ValueError: in the call, inputs that are not floating point, or a value of a shape not described here.
    """

    scale: str = "input_scale"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.scale,)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        check_floating(inputs)
        high = 1 + value_of(sample, self.scale, inputs)
        low = 1 / high
        draws = torch.rand(len(inputs), dtype=torch.float32, device=inputs.device)
        return inputs * over_examples(low + (high - low) * draws, inputs).to(inputs.dtype)


@dataclass(frozen=True)
class InputNoise:
    """Adds Gaussian noise with the example's standard deviation to each element.

    The call takes floating-point inputs of shape `(batch, ...)`.

    Attributes:
        sd: Name of the hyperparameter that is the standard deviation, `>= 0`, in units of the inputs; 0 leaves an
            example as it is.

    Raises:
        ValueError: in the call, inputs that are not floating point, or a value of a shape not described here.
    """

    sd: str = "input_noise"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.sd,)

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        check_floating(inputs)
        sd = over_examples(value_of(sample, self.sd, inputs), inputs)
        # Not randn_like: on a CPU that takes ten times as long where the inputs are channels last.
        noise = torch.randn(inputs.shape, dtype=torch.float32, device=inputs.device)
        return inputs + noise.mul_(sd).to(inputs.dtype)
