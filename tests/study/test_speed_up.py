"""Speed-up at equal quality, on incumbents written by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from tune_stn.study.speed_up import speed_up

# (method, seed) -> best-so-far as (cost, loss), and what the run spent in all.
RUNS = {
    ("stn", 0): ([(1, 5.0), (4, 2.0), (10, 1.0)], 12.0),
    ("stn", 1): ([(2, 3.0), (10, 2.5)], 12.0),
    ("good", 0): ([(3, 6.0), (20, 2.0)], 40.0),
    ("good", 1): ([(3, 4.0), (30, 2.0)], 40.0),
    ("bad", 0): ([(1, 9.0)], 40.0),
    ("bad", 1): ([(1, 9.0)], 40.0),
}


def tables(runs: dict[tuple[str, int], tuple[list[tuple[float, float]], float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = {"task": "t", "trial_id": "a"}
    incumbent = [
        names | {"method": m, "seed": s, "cost_total": float(c), "wall_time_s": 2.0 * c, "best_val_loss": loss}
        for (m, s), (points, _) in runs.items()
        for c, loss in points
    ]
    reports = [
        names | {"method": m, "seed": s, "cost_total": end, "wall_time_s": 2 * end} for (m, s), (_, end) in runs.items()
    ]
    return pd.DataFrame(incumbent), pd.DataFrame(reports)


@pytest.mark.parametrize("axis", ["cost_total", "wall_time_s"])
def test_ratio_of_what_the_best_baseline_spent_to_where_its_value_was_reached(axis: str) -> None:
    (row,) = speed_up(*tables(RUNS), ["stn"], axis=axis).to_dict("records")
    unit = 1 if axis == "cost_total" else 2
    assert (row["method"], row["baseline"], row["n"], row["reached"]) == ("stn", "good", 2, 1)
    # Seed 0: 40 / 4, and 20 / 4 until the baseline found it. Seed 1 never: 0.
    assert row["median"] == pytest.approx((10 + 0) / 2)
    assert row["median_until_found"] == pytest.approx((5 + 0) / 2)
    # Means of both seeds: (5, 3), (2, 3), (1, 2.5): at most 2.0 only at cost 10.
    assert row["target"] == 2.0
    assert row["cost"] == 10 * unit
    assert row["of_means"] == pytest.approx(4.0)


def test_a_seed_that_only_one_side_has_does_not_count() -> None:
    runs = {key: value for key, value in RUNS.items() if key != ("good", 1)}
    (row,) = speed_up(*tables(runs), ["stn"]).to_dict("records")
    assert (row["baseline"], row["n"], row["median"]) == ("good", 1, 10.0)


def test_never_reached_is_nan_and_zero() -> None:
    runs = RUNS | {("stn", 0): ([(1.0, 5.0)], 12.0)}
    (row,) = speed_up(*tables(runs), ["stn"]).to_dict("records")
    assert row["reached"] == row["median"] == 0
    assert math.isnan(row["cost"])
    assert math.isnan(row["of_means"])


def test_without_a_baseline_there_is_no_row() -> None:
    assert speed_up(*tables(RUNS), ["stn", "good", "bad"]).empty


def test_a_control_of_self_tuning_is_no_baseline() -> None:
    runs = {**RUNS, ("replayed", 0): ([(1, 0.1)], 20.0), ("replayed", 1): ([(1, 0.1)], 20.0)}
    (row,) = speed_up(*tables(runs), ["stn"]).to_dict("records")
    assert row["baseline"] == "good"
