"""The tunable state: raw coordinates and perturbation scales of all hyperparameters, and draws from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.space.sample import Sample
from tune_stn.space.search_space import SearchSpace


class Tunable(nn.Module):
    """Raw coordinates `raw` (lambda, shape `(n,)`) and `rho` (shape `(n,)`) with `scale = softplus(rho)`.

    Args:
        space: the hyperparameters.
        start: start value of each, inside its domain.
        scale: start value of every perturbation scale sigma, in raw units, > 0.

    Raises:
        ValueError: a start value is missing or outside its domain, or `scale` is not positive.
    """

    raw: nn.Parameter
    rho: nn.Parameter
    per_batch: Tensor

    def __init__(self, space: SearchSpace, start: Mapping[str, float], *, scale: float = 1.0) -> None:
        super().__init__()
        start = space.check_values(start)
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be positive, got {scale:g}")
        self.space = space
        self.raw = nn.Parameter(torch.tensor([space[name].inverse(start[name]) for name in space]))
        self.rho = nn.Parameter(torch.full((len(space),), inverse_softplus(scale)))
        self.register_buffer("per_batch", torch.tensor([name in space.per_batch for name in space]), False)

    def scale(self) -> Tensor:
        """Perturbation scales sigma, shape `(n,)`, positive."""
        return F.softplus(self.rho)

    def values(self, raw: Tensor) -> dict[str, Tensor]:
        """Values of raw coordinates of shape `(rows, n)`: name -> shape `(rows,)`, or `(1,)` if per batch; detached."""
        columns = dict(zip(self.space, raw.detach().unbind(-1), strict=True))
        shared = {name: columns[name][:1] for name in self.space.per_batch}
        return {name: domain.transform((columns | shared)[name]) for name, domain in self.space.items()}

    def mean_values(self) -> dict[str, float]:
        """The value of each hyperparameter at the mean of its perturbation: what schedules record."""
        return {name: float(value) for name, value in self.values(self.raw[None]).items()}

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

    def entropy(self) -> Tensor:
        """Entropy of the perturbation, a scalar: sum of log(sigma * sqrt(2 pi e)) (arXiv 1903.03088, eq. 16)."""
        return torch.log(self.scale() * math.sqrt(2 * math.pi * math.e)).sum()

    def constant_sample(self) -> Sample:
        """Everybody at the mean, one row, with a zero response: what a plain network trains with."""
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
        return Sample(dict(zip(self.space, self.value[:, None].unbind(0), strict=True)))


def inverse_softplus(value: float) -> float:
    """The x with softplus(x) = value > 0, exact for small and large values alike."""
    return value + math.log(-math.expm1(-value))
