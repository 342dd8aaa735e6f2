"""The domains of a study's hyperparameters as `study.json` holds them, for axes and for how far a value has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tune_stn.space.domains import Domain, Integer, LogInteger, LogUniform, Normal, Uniform, from_entry, to_entry

# A normal domain has no ends; this many standard deviations on each side of its mean count as its width.
_SPREAD = 2.0


def domains_entry(space: Mapping[str, Domain]) -> dict[str, dict[str, Any]]:
    """The entry `domains` of `study.json`: name -> `kind` and the arguments of the domain.

    A domain of a class that is not one of `tune_stn.space` is left out.
    """
    entries = {
        name: to_entry(domain)
        for name, domain in space.items()
        if isinstance(domain, Uniform | LogUniform | Integer | Normal)
    }
    return {name: {"kind": kind, **arguments} for name, (kind, arguments) in entries.items()}


def read_domains(study: Mapping[str, Any]) -> dict[str, Domain]:
    """The domains by name; empty for a study of an earlier version and for a recorded run, which do not say them.

    Raises:
        ValueError: An entry describes no domain.
    """
    domains = {}
    entries = study.get("domains", {})
    if not isinstance(entries, Mapping):
        raise ValueError(f"study.json is damaged: its domains are {entries!r}; restore it from a copy")
    for name, entry in entries.items():
        try:
            arguments = dict(entry)
            domains[name] = from_entry(arguments.pop("kind"), arguments)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"study.json is damaged: the domain of {name!r} is {entry!r}; restore it from a copy"
            ) from error
    return domains


def is_log(domain: Domain) -> bool:
    """Whether a domain spaces its values logarithmically."""
    return isinstance(domain, LogUniform | LogInteger)


def looks_log(domain: Domain | None, values: Sequence[float] | NDArray[Any]) -> bool:
    """Whether the domain is logarithmic; of one that is not known, whether its values are spread as if it were."""
    if domain is not None:
        return is_log(domain)
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return bool(finite.size and finite.min() > 0 and finite.max() > 30 * finite.min())


def bounds_of(domain: Domain) -> tuple[float, float] | None:
    """Lowest and highest value of a domain; None where it has no ends."""
    return (domain.low, domain.high) if isinstance(domain, Uniform | LogUniform | Integer) else None


def place(domain: Domain, value: float) -> float:
    """The place of a value between the ends of its domain, 0 to 1, on the domain's own linear or log scale.

    Raises:
        ValueError: The domain has no ends.
    """
    bounds = bounds_of(domain)
    if bounds is None:
        raise ValueError(f"{domain.describe()} has no ends")
    low, high = bounds
    if is_log(domain):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def place_of_raw(domain: Domain | None, raw: ArrayLike) -> NDArray[np.float64]:
    """The same of raw coordinates, of any shape: `sigmoid(raw)`.

    Where the domain is normal, a width of 1 is four standard deviations. An unknown domain counts as one with ends.
    """
    coordinates = np.asarray(raw, dtype=np.float64)
    if isinstance(domain, Normal):
        return (coordinates - domain.mean) / (2 * _SPREAD * domain.sd) + 0.5
    return 0.5 * (1 + np.tanh(coordinates / 2))


def values_of_raw(domain: Domain, raw: ArrayLike) -> NDArray[np.float64]:
    """The values of raw coordinates, of any shape."""
    return domain.transform(torch.tensor(np.asarray(raw, dtype=np.float64))).numpy()
