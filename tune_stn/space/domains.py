"""Domains of single hyperparameters and their maps to an unconstrained raw coordinate.

Each domain is a frozen dataclass with the same five methods, written for tensors:

* `transform(raw)` -> value inside the domain, discrete values floored; any shape, any floating dtype;
* `inverse(value)` -> the raw coordinate at which `transform` gives `value` back;
* `contains(value)` -> whether a number is a member of the domain;
* `nearest(value)` -> the member nearest to a finite number;
* `describe()` -> the domain in words, for error messages.

Random draws are uniform in `sigmoid(raw)` (`Normal` has a law of its own), and Ray Tune has a domain with the same law
(`space/ray_domains.py`): a domain that it has none for works in loops of one's own alone.

The raw coordinate is lambda of Self-Tuning Networks (arXiv 1903.03088, section 4.2): the perturbation is Gaussian in it
and the response layers see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

# A continuous start value on a bound has an infinite raw coordinate. It is moved inside by this share of the
# domain's width (in log space for log domains): far enough to have a gradient, near enough to mean the bound.
EDGE = 1e-3
# What counts as on the bound, as a share of the width; any other start value comes out as itself.
ON_THE_EDGE = 1e-6
# Relative rounding of float32, in which values are kept: a member that went through it is still one.
ROUNDING = 2e-7


@runtime_checkable
class Domain(Protocol):
    """What a search space asks of the domain of one hyperparameter."""

    def transform(self, raw: Tensor) -> Tensor: ...
    def inverse(self, value: float) -> float: ...
    def contains(self, value: float) -> bool: ...
    def nearest(self, value: float) -> float: ...
    def describe(self) -> str: ...


@dataclass(frozen=True)
class Uniform:
    """A real number in [low, high]; with `step`, only the multiples of `step` in it.

    Raises:
        ValueError: the interval is empty or not finite, or its ends are not multiples of `step`.
    """

    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        _check_interval(self)
        _check_step(self)

    def transform(self, raw: Tensor) -> Tensor:
        share = torch.sigmoid(raw)
        if self.step is None:
            # Clamped for the rounding of low + (high - low) alone.
            return (self.low + (self.high - self.low) * share).clamp(self.low, self.high)
        return _pick_cell(torch.sigmoid(_exact(raw)), self.low, self.high, self.step).to(raw.dtype)

    def inverse(self, value: float) -> float:
        _check_member(self, value)
        if self.step is None:
            return logit(_off_the_edge((value - self.low) / (self.high - self.low)))
        return logit(_cell_centre(value, self.low, self.high, self.step))

    def contains(self, value: float) -> bool:
        return _is_between(value, self.low, self.high) and (self.step is None or _is_multiple(value, self.step))

    def nearest(self, value: float) -> float:
        return min(max(_round_to(value, self.step), self.low), self.high)

    def describe(self) -> str:
        return f"[{self.low:g}, {self.high:g}]" + _step_words(self.step)


@dataclass(frozen=True)
class LogUniform:
    """A positive real number in [low, high], uniform in its logarithm; with `step`, rounded to its multiples.

    Raises:
        ValueError: the interval is empty, not finite, or not positive.
    """

    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        _check_interval(self)
        if self.low <= 0:
            raise ValueError(f"a log domain must be positive, got low={self.low:g}")
        _check_step(self)

    def transform(self, raw: Tensor) -> Tensor:
        bottom, top = math.log(self.low), math.log(self.high)
        if self.step is None:
            return torch.exp(bottom + (top - bottom) * torch.sigmoid(raw)).clamp(self.low, self.high)
        value = torch.exp(bottom + (top - bottom) * torch.sigmoid(_exact(raw)))
        value = (torch.round(value / self.step) * self.step).clamp(self.low, self.high).to(raw.dtype)
        return value

    def inverse(self, value: float) -> float:
        _check_member(self, value)
        bottom, top = math.log(self.low), math.log(self.high)
        if self.step is None:
            return logit(_off_the_edge((math.log(value) - bottom) / (top - bottom)))
        # The middle of what is rounded to the value.
        first, last = max(value - self.step / 2, self.low), min(value + self.step / 2, self.high)
        return logit(((math.log(first) + math.log(last)) / 2 - bottom) / (top - bottom))

    def contains(self, value: float) -> bool:
        return _is_between(value, self.low, self.high) and (self.step is None or _is_multiple(value, self.step))

    def nearest(self, value: float) -> float:
        return min(max(_round_to(value, self.step), self.low), self.high)

    def describe(self) -> str:
        return f"[{self.low:g}, {self.high:g}] on a log scale" + _step_words(self.step)


@dataclass(frozen=True)
class Integer:
    """An integer in {low, ..., high}, both ends included.

    Every integer owns an equal share of sigmoid(raw), so both ends are reachable, and a start value sits in the middle
    of its share, so it comes out as itself.

    Raises:
        ValueError: the interval is empty, the ends are not integers or not multiples of `step`.
    """

    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        _check_interval(self)
        if any(int(number) != number for number in (self.low, self.high, self.step)):
            raise ValueError(
                f"an integer domain needs integer ends and steps, got [{self.low}, {self.high}] in steps of {self.step}"
            )
        _check_step(self)

    def transform(self, raw: Tensor) -> Tensor:
        return _pick_cell(torch.sigmoid(_exact(raw)), self.low, self.high, self.step).to(raw.dtype)

    def inverse(self, value: float) -> float:
        _check_member(self, value)
        return logit(_cell_centre(value, self.low, self.high, self.step))

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high and value % self.step == 0

    def nearest(self, value: float) -> float:
        return min(max(_round_to(value, self.step), self.low), self.high)

    def describe(self) -> str:
        return f"the integers {self.low} to {self.high}" + _step_words(None if self.step == 1 else self.step)


@dataclass(frozen=True)
class LogInteger(Integer):
    """An integer in {low, ..., high}, both ends included and positive, spaced logarithmically.

    Every integer owns the share of sigmoid(raw) that its logarithm has of the interval.

    Raises:
        ValueError: As for `Integer`; or `low` is not positive.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"a log domain must be positive, got low={self.low}")

    def transform(self, raw: Tensor) -> Tensor:
        bottom, top = math.log(self.low), math.log(self.high + self.step)
        value = torch.exp(bottom + (top - bottom) * torch.sigmoid(_exact(raw)))
        # Clamped because exp(log(low)) may come out just under low, and sigmoid reaches 1.
        return (torch.floor(value / self.step) * self.step).clamp(self.low, self.high).to(raw.dtype)

    def inverse(self, value: float) -> float:
        _check_member(self, value)
        bottom, top = math.log(self.low), math.log(self.high + self.step)
        middle = (math.log(value) + math.log(value + self.step)) / 2
        return logit((middle - bottom) / (top - bottom))

    def describe(self) -> str:
        scale = f"the integers {self.low} to {self.high} on a log scale"
        return scale + _step_words(None if self.step == 1 else self.step)


@dataclass(frozen=True)
class Normal:
    """Any real number; methods that sample draw it from a normal distribution. The raw coordinate is the value.

    Raises:
        ValueError: `sd` or `step` is not positive.
    """

    mean: float = 0.0
    sd: float = 1.0
    step: float | None = None

    def __post_init__(self) -> None:
        if not (self.sd > 0 and math.isfinite(self.sd) and math.isfinite(self.mean)):
            raise ValueError(f"a normal domain needs a finite mean and sd > 0, got mean={self.mean:g}, sd={self.sd:g}")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"the step of a domain must be positive, got {self.step:g}")

    def transform(self, raw: Tensor) -> Tensor:
        return raw if self.step is None else torch.round(raw / self.step) * self.step

    def inverse(self, value: float) -> float:
        _check_member(self, value)
        return float(value)

    def contains(self, value: float) -> bool:
        return math.isfinite(value) and (self.step is None or _is_multiple(value, self.step))

    def nearest(self, value: float) -> float:
        return _round_to(value, self.step)

    def describe(self) -> str:
        return "any real number" + _step_words(self.step)


# In files -----------------------------------------------------------------------------------------------------------

KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Uniform, LogUniform, Integer, Normal)}


def to_entry(domain: Uniform | LogUniform | Integer | Normal) -> tuple[str, dict[str, Any]]:
    """The kind and the arguments of a domain, as files hold them: a `LogInteger` is an `Integer` with `log`."""
    if isinstance(domain, Integer):
        return "Integer", {**asdict(domain), "log": isinstance(domain, LogInteger)}
    return type(domain).__name__, asdict(domain)


def from_entry(kind: str, arguments: Mapping[str, Any]) -> Domain:
    """The domain that `to_entry` was given.

    Raises:
        KeyError: There is no such kind.
        TypeError: An argument is missing or unknown.
        ValueError: The domain is empty.
    """
    arguments = dict(arguments)
    made = LogInteger if kind == "Integer" and arguments.pop("log", False) else KINDS[kind]
    domain: Domain = made(**arguments)
    return domain


# Shares of the interval ---------------------------------------------------------------------------------------------


def _exact(raw: Tensor) -> Tensor:
    """In double precision, where the device has it: in float32, shares of a million members are a few of them off."""
    return raw if raw.device.type == "mps" else raw.double()


def _check_interval(domain: Uniform | LogUniform | Integer) -> None:
    low, high = domain.low, domain.high
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"empty domain: low={low:g} must be below high={high:g}, both finite")


def _check_step(domain: Uniform | LogUniform | Integer) -> None:
    step = domain.step
    if step is None:
        return
    if not step > 0:
        raise ValueError(f"the step of a domain must be positive, got {step:g}")
    if not (_is_multiple(domain.low, step) and _is_multiple(domain.high, step)):
        raise ValueError(f"both ends of {domain.describe()} must be multiples of the step")


def _check_member(domain: Domain, value: float) -> None:
    if not domain.contains(value):
        raise ValueError(f"{value:g} is outside {domain.describe()}")


def _is_between(value: float, low: float, high: float) -> bool:
    return low - ROUNDING * abs(low) <= value <= high + ROUNDING * abs(high)


def _is_multiple(value: float, step: float) -> bool:
    return math.isfinite(value) and math.isclose(value / step, round(value / step), rel_tol=ROUNDING, abs_tol=ROUNDING)


def _round_to(value: float, step: float | None) -> float:
    return value if step is None else round(value / step) * step


def _step_words(step: float | None) -> str:
    return "" if step is None else f" in steps of {step:g}"


def _off_the_edge(share: float) -> float:
    if share < ON_THE_EDGE:
        return EDGE
    return 1 - EDGE if share > 1 - ON_THE_EDGE else share


def logit(share: float) -> float:
    """The raw coordinate at which sigmoid(raw) is a share, strictly between 0 and 1."""
    return math.log(share) - math.log1p(-share)


def _cells(low: float, high: float, step: float) -> int:
    return round((high - low) / step) + 1


def _pick_cell(share: Tensor, low: float, high: float, step: float) -> Tensor:
    count = _cells(low, high, step)
    # sigmoid reaches 1.0 in floating point: the first clamp keeps that case inside the last cell, the second the last
    # multiple inside the domain.
    index = round(low / step) + torch.floor(count * share).clamp(max=count - 1)
    return (step * index).clamp(low, high)


def _cell_centre(value: float, low: float, high: float, step: float) -> float:
    return (round((value - low) / step) + 0.5) / _cells(low, high, step)
