"""What the runs of experiments/rules.py come to: losses by seed, shares of a gain, and a verdict on each setting.

experiments/rules_tables.py writes it down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rules import RANDOM

from tune_stn.study.statistics import PairedDifference, mean_interval, paired_difference

COST, REPLAYED, FROZEN, P, PLACEBO = 1.4, 0.7, 0.2, 0.05, 0.003  # the demands
ROUNDING = 1e-9
NOT_RUN, NO_GAIN = "not run", "no gain"


@dataclass(frozen=True)
class Verdict:
    """What `auto` gains on a setting, and which demands it fails.

    Attributes:
        cost: The cost of a run of `auto`, in plain runs.
        search: `auto` minus the best of the random settings, over the seeds that have both.
        progress: `auto` minus `progress-ratio`, over the seeds that have both.
        shares: The share of the gain over plain that a control has; None where it was not run, NaN without a gain.
        fails: The demands that fail, in words.
        missing: What a demand needs and was not run.
    """

    cost: float
    search: PairedDifference | None
    progress: PairedDifference | None
    shares: Mapping[str, float | None]
    fails: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def words(self) -> str:
        fails = [f"no: {'; '.join(self.fails)}"] if self.fails else []
        missing = [f"open, not run: {', '.join(self.missing)}"] if self.missing else []
        return "; ".join(fails + missing) or "yes"


def by_seed(table: pd.DataFrame, arm: str, column: str = "val_loss") -> pd.Series[float]:
    """A column of an arm, one value for each seed; a loss that is not a number is infinite."""
    return table[table["arm"] == arm].set_index("seed")[column].astype(float).fillna(math.inf)


def of_random(table: pd.DataFrame, count: int) -> dict[int, pd.DataFrame]:
    """The runs at the first random settings, for each seed that has them all.

    Args:
        table: The runs of a setting.
        count: How many of the random settings; the first ones count.
    """
    runs = table[table["arm"].isin([f"random-{number}" for number in range(count)])]
    runs = runs.assign(val_loss=runs["val_loss"].fillna(math.inf))
    return {int(seed): one for seed, one in runs.groupby("seed") if len(one) == count}


def best_of(table: pd.DataFrame, count: int, column: str = "val_loss") -> pd.Series[float]:
    """A column of the random run of least validation loss, for each seed that has all of them.

    Args:
        table: The runs of a setting.
        count: How many of the random settings; the first ones count.
        column: The column to read at the best run.
    """
    best = {seed: float(runs.loc[runs["val_loss"].idxmin(), column]) for seed, runs in of_random(table, count).items()}
    return pd.Series(best, dtype=float)


def best_with_start(table: pd.DataFrame) -> pd.Series[float]:
    """The least validation loss of the start values and of one random setting less, for each seed that has all."""
    both = together(best_of(table, RANDOM - 1), by_seed(table, "plain"))
    return pd.concat(both, axis=1).min(axis=1)


def together(*series: pd.Series[float]) -> list[pd.Series[float]]:
    """The same series at the seeds at which all of them have a finite value."""
    frame = pd.concat(series, axis=1, join="inner")
    frame = frame[np.isfinite(frame).all(axis=1)].sort_index()
    return [frame.iloc[:, column] for column in range(frame.shape[1])]


def share(plain: pd.Series[float], auto: pd.Series[float], other: pd.Series[float]) -> float | None:
    """The share of the gain of `auto` over plain that another arm has, of the means over common seeds.

    Args:
        plain: The losses of the plain network, by seed.
        auto: The losses of the rule.
        other: The losses of the control.

    Returns:
        None without a common seed, NaN where `auto` gains nothing there.
    """
    plain, auto, other = together(plain, auto, other)
    if not len(plain):
        return None
    gain = plain.mean() - auto.mean()
    return float((plain.mean() - other.mean()) / gain) if gain > 0 else math.nan


def difference(a: pd.Series[float], b: pd.Series[float]) -> PairedDifference | None:
    """The paired difference `a - b` over common seeds, None without any."""
    a, b = together(a, b)
    return paired_difference(a, b) if len(a) else None


def judge(table: pd.DataFrame) -> Verdict | None:
    """Hold `auto` to the demands; None where it was not run.

    Args:
        table: The runs of a setting.
    """
    plain, auto = by_seed(table, "plain"), by_seed(table, "auto")
    if not len(auto):
        return None
    fails, missing = [], []
    lost = int((~np.isfinite(auto)).sum())
    if lost:
        fails.append(f"no loss at {lost} seed(s)")
    cost = relative_cost(table, "auto")
    if cost > COST + ROUNDING:
        fails.append(f"cost {cost:.2f} > {COST}")
    search = difference(auto, best_of(table, RANDOM))
    if search is None:
        missing.append(f"{RANDOM} random")
    elif search.mean > 0:
        fails.append(f"above the best of {RANDOM} ({search.mean:+.4f}, {p_value(search)})")
    elif search.p_value >= P:
        few = f", {search.n} seeds cannot give less" if 2 / 2**search.n >= P else ""
        fails.append(f"not told from the best of {RANDOM} ({p_value(search)}{few})")
    names = ("replayed", "last", "frozen")
    shares = {name: share(plain, auto, by_seed(table, f"auto/{name}")) for name in names}
    both = together(plain, auto)
    if not len(both[0]):
        missing.append("plain")
    elif both[0].mean() <= both[1].mean():
        fails.append("no gain over plain")
    for name, value in shares.items():
        if name != "last" and value is None and len(both[0]):
            missing.append(f"auto/{name}")
        elif name != "last" and value is not None and math.isnan(value) and both[0].mean() > both[1].mean():
            fails.append(f"{name}: no gain at the seeds it has")
    replayed, frozen = shares["replayed"], shares["frozen"]
    if replayed is not None and replayed < REPLAYED - ROUNDING:
        fails.append(f"replay keeps {percent(replayed)}")
    if frozen is not None and frozen > FROZEN + ROUNDING:
        fails.append(f"frozen has {percent(frozen)}")
    progress = difference(auto, by_seed(table, "progress-ratio"))
    if progress is None:
        missing.append("progress-ratio")
    elif progress.p_value < P and progress.mean > 0:
        fails.append(f"worse than progress-ratio ({p_value(progress)})")
    return Verdict(cost, search, progress, shares, tuple(fails), tuple(missing))


def relative_cost(table: pd.DataFrame, arm: str) -> float:
    """The mean cost of a run of an arm, in plain runs of as many epochs."""
    runs = table[table["arm"] == arm]
    return float((runs["cost"] / runs["epochs"]).mean())


# In words


def percent(value: float | None) -> str:
    if value is None:
        return NOT_RUN
    return NO_GAIN if math.isnan(value) else f"{round(100 * value)} %"


def p_value(found: PairedDifference) -> str:
    return "p < .001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"


def paired(found: PairedDifference | None, seeds: int | None = None) -> str:
    """A difference with its interval and p, and how many seeds it has where these are fewer than `seeds`."""
    if found is None:
        return NOT_RUN
    ends = "" if math.isnan(found.low) else f" [{found.low:+.4f}, {found.high:+.4f}]"
    fewer = f", {found.n} seeds" if seeds is not None and found.n < seeds else ""
    return f"{found.mean:+.4f}{ends}, {p_value(found)}{fewer}"


def spread(values: pd.Series[float]) -> str:
    """A mean with its interval, where there are seeds enough for one."""
    found = mean_interval(values)
    return f"{found.mean:.4f}" + ("" if math.isnan(found.low) else f" [{found.low:.4f}, {found.high:.4f}]")


def numbers(values: Iterable[int]) -> str:
    """Whole numbers as ranges: 0-3, 7."""
    found: list[list[int]] = []
    for value in sorted({int(value) for value in values}):
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in found)
