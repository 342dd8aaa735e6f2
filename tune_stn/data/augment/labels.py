"""Label smoothing and mixup: augmentations that change targets into class probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_stn.data.augment.augmentation import check_floating, over_examples, value_of
from tune_stn.space.sample import Sample


@dataclass(frozen=True)
class LabelSmoothing:
    """Takes a share r of each example's probability and spreads it evenly over all classes.

    Szegedy et al. (2016, arXiv 1512.00567, section 7). The inputs are left alone. Targets may have further axes, of the
    tokens of a text, say: each has probabilities of its own then.

    Attributes:
        rate: Name of the hyperparameter that is r, in [0, 1]; 0 leaves the probabilities as they are.
        classes: Number of classes.

    Raises:
        ValueError: fewer than two classes; in the call, targets or a value of a shape not described here.
    """

    rate: str = "label_smoothing"
    classes: int = field(kw_only=True)

    def __post_init__(self) -> None:
        _check_classes(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.rate,)

    def __call__(self, inputs: Tensor, targets: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        probabilities = class_probabilities(targets, self.classes)
        rate = over_examples(value_of(sample, self.rate, inputs).to(probabilities.dtype), probabilities)
        return inputs, probabilities * (1 - rate) + rate / self.classes


@dataclass(frozen=True)
class Mixup:
    """Mixes each example and its class probabilities with those of another (Zhang et al. 2018, arXiv 1710.09412).

    The partners are a permutation of the batch. An example keeps the share w and takes 1 − w of its partner, where w is
    the greater of a draw from Beta(a, a) and 1 minus it, with the example's own a: so it stays mostly itself, and its
    loss is the one at its own hyperparameters. To exchange w and 1 − w exchanges two examples, no more.

    The call takes finite floating-point inputs of shape `(batch, ...)`.

    Attributes:
        strength: Name of the hyperparameter that is a, in [0, 1]; 0 leaves an example as it is, 1 makes w uniform in
            [1/2, 1].
        classes: Number of classes.

    Raises:
        ValueError: fewer than two classes; in the call, inputs that are not floating point, or targets or a value of
            a shape not described here.
    """

    strength: str = "mixup"
    classes: int = field(kw_only=True)

    def __post_init__(self) -> None:
        _check_classes(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.strength,)

    def __call__(self, inputs: Tensor, targets: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        check_floating(inputs)
        probabilities = class_probabilities(targets, self.classes)
        partners = torch.randperm(len(inputs), device=inputs.device)
        draws = torch.rand(2, len(inputs), dtype=torch.float32, device=inputs.device)
        share = partner_share(value_of(sample, self.strength, inputs), draws)
        return _mixed(inputs, partners, share), _mixed(probabilities, partners, share)


def partner_share(strength: Tensor, draws: Tensor) -> Tensor:
    """The lesser of B and 1 − B, with B from Beta(strength, strength), by two uniform draws for each example.

    With U and V uniform, `T = sqrt(ν (U^(−2/ν) − 1)) cos(2πV)` has Student's distribution with ν degrees of freedom
    (Bailey 1994, Mathematics of Computation 62), and `(1 + T / sqrt(ν + T²)) / 2` is Beta(ν/2, ν/2). Sampling by
    rejection would take a number of draws that depends on the strength.

    Args:
        strength: Both parameters of the beta distribution, `>= 0`, shape `(batch,)` or `(1,)`; 0 gives 0.
        draws: U and V in [0, 1), shape `(2, batch)`.

    Returns:
        Shape `(batch,)`, in [0, 1/2].
    """
    uniform, turn = draws
    # T² / ν; infinite at a small strength, which is right: there B is 0 or 1.
    odds = torch.expm1(-torch.log(uniform) / strength) * torch.cos(2 * math.pi * turn).square()
    return (1 - 1 / torch.sqrt(1 + 1 / odds)) / 2


def class_probabilities(targets: Tensor, classes: int) -> Tensor:
    """Integer targets `(batch, ...)` as float32 of shape `(batch, ..., classes)`; probabilities of it as they are.

    Raises:
        ValueError: targets are neither.
    """
    if targets.is_floating_point() and targets.ndim >= 2 and targets.shape[-1] == classes:
        return targets
    if targets.is_floating_point() or targets.ndim == 0:
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}: accepted are integers of shape (batch, ...) "
            f"and probabilities of shape (batch, ..., {classes})"
        )
    return F.one_hot(targets.long(), classes).float()


def _mixed(values: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    # From the example towards its partner, so that a share of 0 is exactly the example.
    return torch.lerp(values, values.index_select(0, partners), over_examples(share.to(values.dtype), values))


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ValueError(f"classes={classes}: accepted is 2 or more")
