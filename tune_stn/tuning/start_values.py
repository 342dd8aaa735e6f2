"""Where a self-tuning trial may start: the domains of `config["hp"]`, and where other trials ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tune_stn.space.ray_domains import domain_from_ray

# Trials of a run usually share their seed: from the very point where another began, one would be that one again.
LEAST_SPREAD = 0.1


@dataclass(frozen=True)
class Report:
    """A trial's best report: loss (lower is better), tuned values, and perturbation scales in raw units."""

    loss: float
    values: dict[str, float]
    scales: dict[str, float]


class StartDomains:
    """The domains of the hyperparameters that get a start value.

    Args:
        domains: Name -> Tune domain.

    Raises:
        ValueError: a domain has no raw coordinate; the message names it.
    """

    def __init__(self, domains: Mapping[str, Any]) -> None:
        self._of_tune = dict(domains)
        self._ours = {name: domain_from_ray(name, domain) for name, domain in domains.items()}

    def __len__(self) -> int:
        return len(self._ours)

    def nearest(self, values: Mapping[str, float]) -> dict[str, float]:
        """The members nearest to values, integers of an integer domain as such; other names are left out.

        Raises:
            ValueError: a value is missing.
        """
        if missing := [name for name in self._ours if name not in values]:
            raise ValueError(
                f"no start value for {', '.join(missing)} of param_space['hp']; given: {', '.join(values)}"
            )
        return {name: self._of_tune[name].cast(self._ours[name].nearest(values[name])) for name in self._ours}

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """A draw from the domains' own distributions."""
        return self.nearest({name: domain.sample(random_state=rng) for name, domain in self._of_tune.items()})

    def draw_near(self, reports: Sequence[Report], rng: np.random.Generator) -> dict[str, float]:
        """A draw around one of some trials' best reports: the Gaussian mixture in the docstring of `STNSearch`.

        Args:
            reports: One or more trials' best reports.
            rng: Random generator of the draw.
        """
        ranked = sorted(reports, key=lambda report: report.loss)
        raw = np.array([[d.inverse(d.nearest(r.values[name])) for name, d in self._ours.items()] for r in ranked])
        weights = 1 / np.arange(1, len(ranked) + 1)
        weights /= weights.sum()
        chosen = rng.choice(len(ranked), p=weights)
        scales = np.array([ranked[chosen].scales[name] for name in self._ours])
        spread = np.sqrt(scales**2 + weights @ (raw - weights @ raw) ** 2).clip(LEAST_SPREAD)
        drawn = torch.from_numpy(raw[chosen] + spread * rng.standard_normal(len(self)))
        return self.nearest(
            {name: float(d.transform(at)) for (name, d), at in zip(self._ours.items(), drawn, strict=True)}
        )
