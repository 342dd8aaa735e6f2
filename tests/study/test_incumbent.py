from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_stn.study.incumbent import best_so_far, last_of_each_run, value_at
from tune_stn.training.tables import RUN_COLUMNS

LOSSES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=15)
COLUMNS = ["task", "method", "seed", "cost_total", "wall_time_s", "trial_id", "best_val_loss", "test_loss_at_best"]


def reports_of(losses: list[float], costs: list[float] | None = None, seed: int = 0) -> pd.DataFrame:
    n = len(losses)
    costs = list(range(1, n + 1)) if costs is None else costs
    columns = {"task": ["t"] * n, "method": ["m"] * n, "seed": [seed] * n, "trial_id": ["a"] * n}
    columns |= {"report_index": range(n), "cost_total": np.array(costs, float), "wall_time_s": np.array(costs, float)}
    return pd.DataFrame(columns | {"val_loss": np.array(losses, float), "test_loss": -np.array(losses, float)})


def test_a_row_at_each_strict_improvement() -> None:
    best = best_so_far(reports_of([3.0, 3.0, np.nan, 2.0, np.inf, 2.5, -np.inf, 1.0]))
    assert list(best.columns) == COLUMNS
    assert best["best_val_loss"].tolist() == [3, 2, 1]
    assert best["cost_total"].tolist() == [1, 4, 8]
    assert best["test_loss_at_best"].tolist() == [-3, -2, -1]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(LOSSES, st.randoms(use_true_random=False))
def test_finite_decreasing_minimal_and_blind_to_row_order(losses: list[float], random: object) -> None:
    reports = reports_of(losses)
    best = best_so_far(reports)
    values = best["best_val_loss"].to_numpy()
    assert np.isfinite(values).all()
    assert all(values[i + 1] < values[i] for i in range(len(values) - 1))
    assert best["cost_total"].is_monotonic_increasing
    finite = [loss for loss in losses if np.isfinite(loss)]
    assert len(values) == len({min(finite[: i + 1]) for i in range(len(finite))})
    assert not finite or values[-1] == min(finite)
    order = list(range(len(losses)))
    random.shuffle(order)  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(best_so_far(reports.iloc[order]), best)


def test_columns_of_theirs_by_these_names_are_not_read() -> None:
    """As `STNTrainable` reports `best_val_loss` under a `Recorder`."""
    reports = reports_of([3.0, 2.0])
    more = reports.assign(best_val_loss=9.0, test_loss_at_best=9.0)
    pd.testing.assert_frame_equal(best_so_far(more), best_so_far(reports))


def test_order_is_by_cost_and_ties_by_report() -> None:
    best = best_so_far(reports_of([1.0, 5.0, 4.0], costs=[9, 2, 2]))
    assert best["best_val_loss"].tolist() == [5, 4, 1]


def test_runs_are_apart_and_a_run_of_nan_has_no_row() -> None:
    parts = [reports_of([1.0], seed=0), reports_of([2.0], seed=1), reports_of([np.nan], seed=2)]
    best = best_so_far(pd.concat(parts))
    assert best["seed"].tolist() == [0, 1]
    assert best["best_val_loss"].tolist() == [1, 2]
    assert len(last_of_each_run(best)) == len(best[RUN_COLUMNS].drop_duplicates()) == 2


def test_value_is_a_right_continuous_step_and_nan_before_the_first() -> None:
    run = best_so_far(reports_of([3.0, 2.0], costs=[1, 4]))
    got = value_at(run, [0, 0.99, 1, 3.99, 4, 1e9])
    np.testing.assert_array_equal(got, [np.nan, np.nan, 3, 3, 2, 2])
    np.testing.assert_array_equal(value_at(run, [2], "test_loss_at_best", axis="wall_time_s"), [-3])
    np.testing.assert_array_equal(value_at(run.iloc[:0], [1, 2]), [np.nan, np.nan])


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="val_loss, test_loss"):
        best_so_far(reports_of([1.0]).drop(columns=["val_loss", "test_loss"]))
    with pytest.raises(ValueError, match="without cost_total"):
        best_so_far(reports_of([1.0], costs=[np.nan]))
    two = best_so_far(pd.concat([reports_of([1.0], seed=0), reports_of([2.0], seed=1)]))
    with pytest.raises(ValueError, match="one run"):
        value_at(two, [1.0])
