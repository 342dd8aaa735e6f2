from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tune_stn.study import figures as module
from tune_stn.study.figures import figures, with_metrics
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.results import Results
from tune_stn.study.summary import summary


def test_curves_end_at_the_values_of_the_table(results: Results) -> None:
    data = figures(results)
    table = summary(results).set_index("method")
    for axis in ("cost_total", "wall_time_s"):
        for method, curve in data["curves"][axis].items():
            for measure in ("best_val_loss", "test_loss_at_best"):
                assert curve["y"][measure][-1] == pytest.approx(table.loc[method, measure], rel=1e-4)
            assert [run["seed"] for run in curve["runs"]] == [0, 1, 2]
            assert curve["low"] == {}  # no band at three runs


def test_a_metric_is_that_of_the_report_with_the_best_loss(results: Results) -> None:
    for row in with_metrics(results).to_dict("records"):
        same = results.reports[results.reports["val_loss"] == row["best_val_loss"]]
        assert same["val_accuracy"].tolist() == [row["val_accuracy"]]


def test_a_metric_with_the_name_of_a_column_is_left_out(results: Results) -> None:
    named = results.reports.assign(best_val_loss=7.0)
    again = with_metrics(replace(results, reports=named))
    assert again.equals(with_metrics(results))


def test_long_curves_are_thinned_but_keep_their_warm_up_and_their_end(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = figures(results)["schedules"][0]["lines"][0]
    monkeypatch.setattr(module, "_POINTS", 4)
    thin = figures(results)["schedules"][0]["lines"][0]
    assert len(whole["x"]) > len(thin["x"]) == 5
    for name in ("x", "y", "low", "high"):
        assert thin[name][:2] == whole[name][:2]
        assert thin[name][-1] == whole[name][-1]


def test_axes_go_by_the_domains(results: Results) -> None:
    dropout, decay = figures(results)["values"]
    assert (dropout["log"], dropout["ends"], decay["log"], decay["ends"]) == (False, (0.0, 0.9), True, (1e-6, 1.0))


def test_a_study_that_found_nothing_has_empty_figures_and_json_takes_them(results: Results) -> None:
    lost = results.reports.assign(val_loss=np.nan)
    for reports in (lost, lost.iloc[:0]):
        data = figures(replace(results, reports=reports, incumbent=best_so_far(reports)))
        assert data["methods"] == []
        json.dumps(data, allow_nan=False)
