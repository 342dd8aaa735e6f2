"""Speed-up at equal quality: how much less one method spends to reach what another one reaches."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tune_stn.study.controls import CONTROLS
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.statistics import mean_curve

COLUMNS = [
    *("method", "baseline", "n", "reached", "median", "median_until_found"),
    *("target", "baseline_cost", "cost", "of_means"),
]


def speed_up(
    incumbent: pd.DataFrame, reports: pd.DataFrame, methods: Collection[str], *, axis: str = "cost_total"
) -> pd.DataFrame:
    """Each of `methods` against the best of all other methods of a study, the one of the lowest mean final loss.

    Controls of self-tuning are no baselines: they are made from it.

    At each seed the target is the best validation loss that the baseline reaches with all it spends. A method's
    speed-up there is what the baseline spent over what the method had spent when it first reached the target, and 0
    where it never did.

    Args:
        incumbent: The `incumbent` table of one task.
        reports: The `reports` table of the same study, for what each run spent.
        methods: Names of the methods to compare with the rest.
        axis: `cost_total` (plain-epoch equivalents) or `wall_time_s` (seconds).

    Returns:
        A row per method, with the columns `method, baseline`; `n`, seeds at which both have a value, and `reached`,
        at how many of them the method reached the target; `median`, the median speed-up over these seeds, and
        `median_until_found`, the same with only what the baseline had spent when it found its best; `target`, the
        mean over seeds of the baseline's best, `baseline_cost`, the mean of what it spent, `cost`, where the method's
        mean best-so-far first reaches the target, and `of_means`, the ratio of these two (NaN where it never does).
        Without a baseline there is no row.
    """
    final = last_of_each_run(incumbent)
    others = final[~final["method"].isin([*methods, *CONTROLS])]
    if others.empty:
        return pd.DataFrame(columns=COLUMNS)
    baseline = str(others.groupby("method")["best_val_loss"].mean().idxmin())
    theirs = others[others["method"] == baseline].set_index("seed")
    spent = reports[reports["method"] == baseline].groupby("seed")[axis].max()
    rows = []
    for method in [name for name in dict.fromkeys(final["method"]) if name in methods]:
        seeds = theirs.index.intersection(final[final["method"] == method]["seed"])
        mine = incumbent[(incumbent["method"] == method) & incumbent["seed"].isin(seeds)]
        target = theirs.loc[seeds, "best_val_loss"]
        reached = pd.Series(
            {seed: _first(run[axis], run["best_val_loss"], target[seed]) for seed, run in mine.groupby("seed")},
            dtype=float,
        ).reindex(seeds)
        points = np.unique(mine[axis])
        cost = _first(points, mean_curve(mine, points, axis)["mean"], float(target.mean()))
        row = {"method": method, "baseline": baseline, "n": len(seeds), "reached": int(reached.notna().sum())}
        row |= {
            "median": float((spent[seeds] / reached).fillna(0).median()),
            "median_until_found": float((theirs.loc[seeds, axis] / reached).fillna(0).median()),
            "target": float(target.mean()),
            "baseline_cost": float(spent[seeds].mean()),
        }
        rows.append(row | {"cost": cost, "of_means": row["baseline_cost"] / cost})
    return pd.DataFrame(rows, columns=COLUMNS)


def _first(at: ArrayLike, values: ArrayLike, target: float) -> float:
    """Where values, by increasing `at`, first are at most the target; NaN where never."""
    there = np.flatnonzero(np.asarray(values) <= target)
    return float(np.asarray(at)[there[0]]) if there.size else float("nan")
