from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tune_stn.study.incumbent import best_so_far, last_of_each_run
from tune_stn.study.results import Results, load_results
from tune_stn.study.statistics import mean_interval
from tune_stn.study.summary import final_values, format_summary, summary, summary_cells


def test_figures_are_those_of_the_last_incumbents(results: Results) -> None:
    table = summary(results).set_index("method")
    assert table["best_val_loss"].is_monotonic_increasing
    final = last_of_each_run(results.incumbent)
    for method in results.study["methods"]:
        runs = final[final["method"] == method]
        for column in ("best_val_loss", "test_loss_at_best"):
            expected = mean_interval(runs[column])
            got = [table.loc[method, name] for name in (column, f"{column}_low", f"{column}_high")]
            assert got == [expected.mean, expected.low, expected.high]


def test_what_was_spent_and_what_went_wrong(results: Results) -> None:
    table = summary(results).set_index("method")
    assert table["seeds"].to_dict() == {"stn": 3, "pbt": 3, "random": 3}
    assert table["trials"].to_dict() == {"stn": 6, "pbt": 12, "random": 12}
    assert table["diverged"].to_dict() == {"stn": 0, "pbt": 0, "random": 1}
    assert (table["failed"] == 0).all()
    assert table.loc["stn", "cost"] == pytest.approx(2 * 10 * 1.8)
    assert table.loc["random", "cost"] == pytest.approx(3 * 8 + 3)
    assert table.loc["stn", "device_time_s"] == pytest.approx(2 * 10 * 3.6)


def test_start_up_and_the_share_of_slots_in_use_are_means_over_the_runs_that_have_ended(results: Results) -> None:
    clocks = [{"method": "stn", "startup_s": 2.0, "slots_in_use": 0.25}, {"method": "pbt", "startup_s": 8.0}]
    clocks += [{"method": "stn", "startup_s": 4.0, "slots_in_use": 0.75}]
    clocks[1]["slots_in_use"] = None  # it has made no report
    table = summary(replace(results, study=results.study | {"clocks": clocks}))
    found = table.set_index("method")[["startup_s", "slots_in_use"]].T
    assert found["stn"].tolist() == [3.0, 0.5]
    assert found["pbt"]["startup_s"] == 8.0
    assert np.isnan([found["pbt"]["slots_in_use"], *found["random"]]).all()
    cells = {row["method"]: row["slots used"] for row in summary_cells(table)}
    assert cells == {"stn": "50 %", "pbt": "-", "random": "-"}


def test_a_missing_run_and_a_run_without_a_value_are_counted(make_study: Callable[..., Path]) -> None:
    results = load_results(make_study(missing=[{"method": "pbt", "seed": 2, "reason": "killed"}]))
    of_pbt = results.reports["method"] == "pbt"
    nothing = of_pbt & (results.reports["seed"] == 1)
    reports = results.reports.assign(val_loss=results.reports["val_loss"].mask(nothing, np.nan))
    table = summary(replace(results, reports=reports, incumbent=best_so_far(reports))).set_index("method")
    assert (table["seeds"]["pbt"], table["missing"]["pbt"]) == (1, 2)
    assert np.isnan(table["best_val_loss_low"]["pbt"])


def test_a_method_that_never_ran_has_a_row(make_study: Callable[..., Path]) -> None:
    gone = [{"method": "pbt", "seed": seed, "reason": "killed"} for seed in range(3)]
    table = summary(load_results(make_study(missing=gone)))
    assert table["method"].iloc[-1] == "pbt"
    assert table["missing"].iloc[-1] == 3
    assert format_summary(table).splitlines()[-1].split() == ["pbt", "0", *"------", "0", "0", "0", "3"]


def test_terminal_table_lines_up(results: Results) -> None:
    table = summary(results)
    first, head, rule, *rows = format_summary(table).splitlines()
    assert "digits-mlp" in first
    assert set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == table["method"].tolist()
    at = head.index("best val loss")
    best = table.iloc[0]
    assert rows[0][at:].startswith(f"{best['best_val_loss']:.4g} [{best['best_val_loss_low']:#.3g}, ")
    assert all(row[at - 1] == " " and row[at].isdigit() for row in rows)


def test_final_values_are_those_reported_at_the_incumbent(results: Results) -> None:
    values = final_values(results)
    assert len(values) == 9
    for row in values.to_dict("records"):
        at = (results.reports["trial_id"] == row["trial_id"]) & (results.reports["val_loss"] == row["best_val_loss"])
        assert results.reports.loc[at, "hp/dropout"].tolist() == [row["hp/dropout"]]
