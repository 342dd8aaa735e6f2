"""The tunable state: raw coordinates and perturbation scales of all hyperparameters, and draws from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.space.sample import Sample
from tune_stn.space.search_space import SearchSpace

# Scales outside do no good: under the lower, responses learn from rounding; over the upper, a draw jumps from one end
# of a bounded domain to the other, and no response is affine over that.
LEAST_SCALE, LARGEST_SCALE = 1e-2, 2.0
# Where a domain has no end on a side, the number `nearest` is asked for stands in for infinity.
FAR = 1e30
# With relative steps, how much faster a raw coordinate moves near the ends of its domain than in the middle, at most.
LARGEST_FACTOR = 10.0


class Tunable(nn.Module):
    """Raw coordinates `raw` (lambda, shape `(n,)`) and `rho` (shape `(n,)`) with `scale = softplus(rho)`.

    Args:
        space: The hyperparameters to be tuned.
        start: Name -> start value, inside its domain.
        scale: Start value of every perturbation scale sigma, in raw units, above 0.

    Attributes:
        origin: Raw coordinates of the start values, shape `(n,)`; the response input of STN is the distance from it.

    Raises:
        ValueError: a start value is missing or outside its domain, or `scale` is not positive.
    """

    raw: nn.Parameter
    rho: nn.Parameter
    origin: Tensor
    per_batch: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, space: SearchSpace, start: Mapping[str, float], *, scale: float = 1.0) -> None:
        super().__init__()
        start = space.check_values(start)
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be positive, got {scale:g}")
        self.space = space
        self.raw = nn.Parameter(torch.tensor([space[name].inverse(start[name]) for name in space]))
        self.register_buffer("origin", self.raw.detach().clone())
        lowest, highest = (
            torch.tensor([domain.inverse(domain.nearest(far)) for domain in space.values()]) for far in (-FAR, FAR)
        )
        # A start value may lie between the end of its domain and the raw coordinate that stands for the end.
        self.register_buffer("lowest", torch.minimum(lowest, self.origin), False)
        self.register_buffer("highest", torch.maximum(highest, self.origin), False)
        self.start_scale = scale
        self.scales = (min(scale, LEAST_SCALE), max(scale, LARGEST_SCALE))
        self.rho = nn.Parameter(torch.full((len(space),), inverse_softplus(scale)))
        self.register_buffer("per_batch", torch.tensor([name in space.per_batch for name in space]), False)

    def scale(self) -> Tensor:
        """Perturbation scales sigma, shape `(n,)`, positive."""
        return F.softplus(self.rho)

    def values(self, raw: Tensor) -> dict[str, Tensor]:
        """Values of raw coordinates of shape `(rows, n)`: name -> shape `(rows,)`, or `(1,)` if per batch; detached.

        With those that are fixed, of shape `(1,)`.
        """
        columns = dict(zip(self.space, raw.detach().unbind(-1), strict=True))
        columns |= {name: columns[name][:1] for name in self.space.per_batch}
        tuned = {name: domain.transform(columns[name]) for name, domain in self.space.items()}
        return tuned | _fixed(self.space, raw)

    def mean_values(self) -> dict[str, float]:
        """The value of each hyperparameter at the mean of its perturbation: what schedules record."""
        values = self.values(self.raw[None])
        return {name: float(values[name]) for name in self.space}

    def perturbed(self, rows: int) -> Tensor:
        """`raw + scale * noise`, shape `(rows, n)`, with gradients to raw and rho.

        Columns of per-batch hyperparameters hold one draw in all rows, and where all are per batch there is one row
        only: then responses merge into plain layers. Draws come from torch's global generator.
        """
        if self.space.per_batch == self.space.keys():
            rows = 1
        noise = torch.randn(rows, len(self.space), device=self.raw.device, dtype=self.raw.dtype)
        noise = torch.where(self.per_batch, noise[:1], noise)
        return self.raw + self.scale() * noise

    @contextmanager
    def within_domains(self, *, relative: bool) -> Iterator[None]:
        """Inside the block an optimizer moves the state; after it, the state is brought back into its bounds.

        Args:
            relative: Whether the move of a raw coordinate is stretched to one relative to its domain before that.
        """
        before = self.raw.detach().clone() if relative else None
        yield
        if before is not None:
            with torch.no_grad():
                self.raw.copy_(torch.lerp(before, self.raw, self.relative_speed(before)))
        self.confine()

    @torch.no_grad()
    def confine(self) -> None:
        """Bring raw coordinates back to where the ends of their domains have theirs, and scales into their bounds.

        Farther out a bounded value moves no more, but the perturbation and the response still would.
        """
        self.raw.clamp_(self.lowest, self.highest)
        self.rho.clamp_(*map(inverse_softplus, self.scales))

    @torch.no_grad()
    def widen(self, factor: float) -> None:
        """Multiply the scales by `factor`, 1 or more, up to their start value; those above it stay as they are."""
        before = self.scale()
        after = (factor * before).clamp(max=self.start_scale)
        self.rho.copy_(torch.where(after > before, after + torch.log(-torch.expm1(-after)), self.rho))

    @torch.no_grad()
    def relative_speed(self, raw: Tensor) -> Tensor:
        """By how much to stretch a step from `raw`, shape `(n,)`, to make it one relative to the domains.

        A step of sigmoid(raw) is raw's step times s (1 - s), a quarter in the middle of the domain; the factor, at most
        10, takes that slope out. It is 1 for a coordinate without ends.
        """
        share = torch.sigmoid(raw)
        factor = (0.25 / (share * (1 - share))).clamp(max=LARGEST_FACTOR)
        bounded = (self.lowest > -FAR) & (self.highest < FAR)
        return torch.where(bounded, factor, torch.ones_like(factor))

    def entropy(self) -> Tensor:
        """Entropy of the perturbation, a scalar: sum of log(sigma * sqrt(2 pi e)) (arXiv 1903.03088, eq. 16)."""
        return torch.log(self.scale() * math.sqrt(2 * math.pi * math.e)).sum()

    def constant_sample(self) -> Sample:
        """All examples at the mean, in one row, with a zero response: the sample that a plain network trains with."""
        return Sample(self.values(self.raw[None]))


class Constants(nn.Module):
    """Fixed values in place of a tunable state: used exactly as given, bounds included.

    Args and raises: as for `Tunable`.
    """

    def __init__(self, space: SearchSpace, start: Mapping[str, float]) -> None:
        super().__init__()
        self.space = space
        values = space.check_values(start)
        self.register_buffer("value", torch.tensor([values[name] for name in space]))
        self.value: Tensor

    def mean_values(self) -> dict[str, float]:
        return dict(zip(self.space, self.value.tolist(), strict=True))

    def constant_sample(self) -> Sample:
        return Sample(
            dict(zip(self.space, self.value[:, None].unbind(0), strict=True)) | _fixed(self.space, self.value)
        )


def _fixed(space: SearchSpace, like: Tensor) -> dict[str, Tensor]:
    """Fixed values, each of shape `(1,)`."""
    return {name: like.new_full((1,), value) for name, value in space.fixed.items()}


def inverse_softplus(value: float) -> float:
    """The x with softplus(x) = value > 0, exact for small and large values alike."""
    return value + math.log(-math.expm1(-value))
