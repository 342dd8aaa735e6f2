"""Where a self-tuning trial may start: the domains of `config["hp"]`, the task's values, and where others ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Tune's own searchers find the domains of a nested param_space with this; the public API has nothing for it.
from ray.tune.search.variant_generator import parse_spec_vars

from tune_stn.space.ray_domains import domain_from_ray
from tune_stn.tasks.registry import get_task
from tune_stn.tasks.task import Task
from tune_stn.tuning.trainable import OWN_KEYS

# Trials of a run usually share their seed: from the very point where another began, one would be that one again.
LEAST_SPREAD = 0.1
# Tune shows a searcher (token, hash) in place of an object, or of a sampling function, in param_space.
HIDDEN = ("__ref_ph", "__fn_ph")


@dataclass(frozen=True)
class Report:
    """A trial's best report: loss (lower is better), tuned values, and perturbation scales in raw units."""

    loss: float
    values: dict[str, float]
    scales: dict[str, float]


class StartDomains:
    """The domains of the hyperparameters that get a start value.

    Args:
        domains: name -> Tune domain.

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
            reports: one or more.
            rng: of the draw.
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


def split_domains(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The domains in `config["hp"]` by name, and the other entries of a config that are or contain domains.

    Raises:
        ValueError: there is a `grid_search`, or a domain in `hp` that belongs to no name.
    """
    _, domains, grids = parse_spec_vars(dict(config))
    if grids:
        where = "/".join(map(str, grids[0][0]))
        raise ValueError(f"grid_search at {where!r} of param_space: a searcher makes no grid; give tune.choice instead")
    hp: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for path, domain in domains:
        if path[0] != "hp":
            outside[path[0]] = config[path[0]]
        elif len(path) == 2:
            hp[path[1]] = domain
        else:
            raise ValueError("param_space['hp']: accepted is a mapping from each hyperparameter's name to its domain")
    return hp, outside


def start_of_task(config: Mapping[str, Any], searched: Mapping[str, Any]) -> Mapping[str, float]:
    """Start values of the task of a trial with this config, made as the trial makes it but for what is searched.

    Raises:
        ValueError: the config does not name a task, or the task does not take its settings.
    """
    task = config.get("task")
    if not isinstance(task, (str, Task)):
        given = "no 'task'" if task is None else "a 'task' that is an object, which Tune hides from searchers"
        raise ValueError(
            f"STNSearch begins with the task's start values, but param_space has {given}: name the task ('digits-mlp', "
            "'module:attribute'), or give STNSearch(start=task.start), a value for each hyperparameter in 'hp'"
        )
    settings = {
        key: value
        for key, value in config.items()
        if key not in OWN_KEYS and key not in searched and not _is_hidden(value)
    }
    return get_task(task, **settings).start


def _is_hidden(value: object) -> bool:
    """Whether a setting is, or contains, something that Tune shows to trials only."""
    if isinstance(value, Mapping):
        return any(map(_is_hidden, value.values()))
    if isinstance(value, (list, tuple)):
        return value[:1] in [(token,) for token in HIDDEN] or any(map(_is_hidden, value))
    return False
