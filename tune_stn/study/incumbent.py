"""Best-so-far, defined once: tables, plots and statistics all read what is computed here."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tune_stn.training.tables import RUN_COLUMNS

_ORDER = ["cost_total", "wall_time_s", "trial_id", "report_index"]
_COLUMNS = [*RUN_COLUMNS, "cost_total", "wall_time_s", "trial_id", "best_val_loss", "test_loss_at_best"]


def best_so_far(reports: pd.DataFrame) -> pd.DataFrame:
    """The incumbent of each run: one row at each strict improvement of the validation loss.

    Reports are taken in the order of `cost_total` (plain-epoch equivalents, the run's running total), ties by
    time and then by report index, so the order of the rows does not matter. A NaN or infinite validation loss
    never wins. The test loss is that of the winning report; it decides nothing.

    Args:
        reports: The `reports` table; of its columns those of `RUN_COLUMNS`, `cost_total`, `wall_time_s`, `trial_id`,
            `report_index`, `val_loss` and `test_loss` are read.

    Returns:
        A frame with the columns `task, method, seed, cost_total, wall_time_s, trial_id, best_val_loss,
        test_loss_at_best`, sorted by run and then by cost. A run without one finite loss has no row.

    Raises:
        ValueError: a column is missing, or a report has no `cost_total` and so no place in the order.
    """
    missing = [name for name in [*RUN_COLUMNS, *_ORDER, "val_loss", "test_loss"] if name not in reports]
    if missing:
        raise ValueError(f"reports lack the column(s) {', '.join(missing)}")
    if reports["cost_total"].isna().any():
        raise ValueError("reports hold a row without cost_total: it has no place in the order of cost")
    finite = reports[np.isfinite(reports["val_loss"])].sort_values([*RUN_COLUMNS, *_ORDER], kind="stable")
    best = finite.groupby(RUN_COLUMNS)["val_loss"].cummin()
    before = best.groupby([finite[name] for name in RUN_COLUMNS]).shift()
    improved = finite[before.isna() | (finite["val_loss"] < before)]
    # A trainable may report columns of these very names.
    losses = {"best_val_loss": improved["val_loss"], "test_loss_at_best": improved["test_loss"]}
    result: pd.DataFrame = improved.assign(**losses)[_COLUMNS].reset_index(drop=True)
    return result


def value_at(
    incumbent_run: pd.DataFrame, costs: ArrayLike, column: str = "best_val_loss", *, axis: str = "cost_total"
) -> NDArray[np.float64]:
    """What a run had reached at given costs: a step function, right-continuous.

    Args:
        incumbent_run: The rows of one run, as `best_so_far` gives them, of shape `(improvements,)`.
        costs: Where to read, of shape `(n,)`; in seconds where `axis` is `wall_time_s`.
        column: `best_val_loss` or `test_loss_at_best`.
        axis: `cost_total` (plain-epoch equivalents) or `wall_time_s` (seconds).

    Returns:
        Shape `(n,)`. NaN before the first finite report: there is no value yet, and no constant stands in for
        one. After the last improvement the value holds.

    Raises:
        ValueError: the rows belong to more than one run.
    """
    if len(incumbent_run[RUN_COLUMNS].drop_duplicates()) > 1:
        raise ValueError("value_at reads one run; select one task, method and seed first")
    at = incumbent_run[axis].to_numpy(dtype=np.float64)
    values = np.append(np.nan, incumbent_run[column].to_numpy(dtype=np.float64))
    return values[np.searchsorted(at, np.asarray(costs, dtype=np.float64), side="right")]


def last_of_each_run(incumbent: pd.DataFrame) -> pd.DataFrame:
    """The final incumbent of each run, one row per run: what the summary and the final values are about."""
    return incumbent.groupby(RUN_COLUMNS, as_index=False).tail(1).reset_index(drop=True)
