from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tune_stn.study.incumbent import best_so_far, last_of_each_run, value_at
from tune_stn.study.results import Results
from tune_stn.study.statistics import differences_to_best, mean_curve, mean_interval, paired_difference

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=6)


def test_interval_by_hand() -> None:
    got = mean_interval([1.0, 2.0, 3.0])
    assert got.mean == 2
    assert got.n == 3
    assert got.high - got.mean == pytest.approx(4.302652729911275 / np.sqrt(3))  # t_{2, .975} s / sqrt(n), s = 1
    assert got.mean - got.low == pytest.approx(got.high - got.mean)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_intervals_are_as_wide_as_they_say(n: int) -> None:
    rng = np.random.default_rng(n)
    draws = rng.normal(3.0, 1.0, (2000, n))
    ends = [mean_interval(row) for row in draws]
    assert np.mean([one.low <= 3 <= one.high for one in ends]) == pytest.approx(0.95, abs=0.02)


def test_too_few_values_give_no_interval() -> None:
    assert (mean_interval([4.0]).mean, mean_interval([4.0]).n) == (4, 1)
    assert np.isnan([mean_interval([4.0]).low, mean_interval([4.0]).high, mean_interval([]).mean]).all()
    assert np.isnan(mean_interval([1.0, np.nan]).mean)
    assert np.isnan(mean_interval([1.0, np.inf]).low)
    one = paired_difference([2.0], [1.0])
    assert (one.mean, one.p_value, one.n) == (1, 1, 1)
    assert np.isnan([one.low, one.high, paired_difference([], []).p_value]).all()


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_sign_flip_is_exact(difference: list[float]) -> None:
    n = len(difference)
    sums = [abs(sum(s * d for s, d in zip(signs, difference, strict=True))) for signs in product([1, -1], repeat=n)]
    slack = 1e-9 * sum(map(abs, difference))
    p = paired_difference(difference, [0.0] * n).p_value
    assert np.mean([s >= abs(sum(difference)) + slack for s in sums]) <= p
    assert p <= np.mean([s >= abs(sum(difference)) - slack for s in sums])
    assert 2 / 2**n <= p <= 1


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_of_a_difference_is_that_of_the_paired_t_test(confidence: float) -> None:
    a, b = np.random.default_rng(1).normal(0.4, 1, (2, 9))
    oracle = stats.ttest_rel(a, b).confidence_interval(confidence)
    got = paired_difference(a, b, confidence)
    assert (got.low, got.high) == pytest.approx((oracle.low, oracle.high))
    assert paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p_value == 0.25


def test_many_pairs_are_sampled_and_never_give_p_of_zero() -> None:
    got = paired_difference(np.ones(20), np.zeros(20))
    assert 0 < got.p_value < 1e-3


def test_differences_are_paired_antisymmetric_and_repeatable() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 10, 5)  # what the seeds share is far larger than what the methods differ by
    a, b = seeds + rng.normal(1, 0.1, 5), seeds + rng.normal(0, 0.1, 5)
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert 0.5 < forward.low < forward.mean < forward.high < 1.5
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.p_value == backward.p_value == 2 / 2**5
    assert paired_difference(a, b) == forward


def test_pairs_must_fit() -> None:
    with pytest.raises(ValueError, match="one value each"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([1.0, np.nan], [1.0, 1.0])


def test_curve_has_no_filler_and_is_not_cut_to_the_shortest() -> None:
    columns = {"task": "t", "method": "m", "trial_id": "a", "test_loss": 0.0, "report_index": 0}
    short = pd.DataFrame(columns | {"seed": 0, "cost_total": [2.0, 3.0], "val_loss": [4.0, 2.0]})
    long = pd.DataFrame(columns | {"seed": 1, "cost_total": [1.0, 9.0], "val_loss": [6.0, 0.0]})
    reports = pd.concat([short, long]).assign(wall_time_s=lambda frame: frame["cost_total"])
    curve = mean_curve(best_so_far(reports), [1, 2, 3, 9])
    np.testing.assert_array_equal(curve["mean"], [np.nan, 5, 4, 1])


@pytest.mark.parametrize("n", [1, 2, 4, 5, 11])
def test_a_curve_has_a_band_from_five_runs_on_and_it_lies_within_them(n: int) -> None:
    losses = np.arange(n, dtype=float)
    one = {"task": "t", "method": "m", "seed": np.arange(n), "cost_total": 1.0, "wall_time_s": 1.0}
    runs = pd.DataFrame(one | {"trial_id": "x", "best_val_loss": losses, "test_loss_at_best": losses})
    band = mean_curve(runs, [1.0])[["low", "high"]].to_numpy()[0]
    if n < 5:
        assert np.isnan(band).all()
    else:
        assert band.tolist() == pytest.approx([0.1 * (n - 1), 0.9 * (n - 1)])


def test_curve_ends_where_the_table_does(results: Results) -> None:
    for _, runs in results.incumbent.groupby("method"):
        end = runs["cost_total"].max()
        final = mean_interval(last_of_each_run(runs)["best_val_loss"])
        assert mean_curve(runs, [end])["mean"].tolist() == [final.mean]
        for _, run in runs.groupby("seed"):
            assert value_at(run, [end])[0] == run["best_val_loss"].min()


def test_differences_to_best_pair_by_seed(results: Results) -> None:
    keep = (results.incumbent["method"] != "pbt") | (results.incumbent["seed"] != 1)
    table = differences_to_best(results.incumbent[keep]).set_index("method")
    assert (table["best"] == "stn").all()
    assert table["n"].to_dict() == {"pbt": 2, "random": 3}
    assert (table["mean"] > 0).all()
    final = last_of_each_run(results.incumbent).pivot(index="seed", columns="method", values="best_val_loss")
    assert table.loc["random", "mean"] == pytest.approx((final["random"] - final["stn"]).mean())
    assert differences_to_best(results.incumbent.iloc[:0]).empty
