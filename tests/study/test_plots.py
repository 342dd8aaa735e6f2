from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from tune_stn.study import plots
from tune_stn.study.incumbent import best_so_far, last_of_each_run
from tune_stn.study.plots import (
    method_colours,
    plot_best_so_far,
    plot_final_values,
    plot_schedules,
    write_plots,
)
from tune_stn.study.results import Results, load_results
from tune_stn.study.summary import summary


def thick(axes: Axes, colour: str) -> list[np.ndarray]:
    """Points, of shape (n, 2), of the thick lines of a colour."""
    lines = [line for line in axes.lines if line.get_linewidth() > 1.5 and line.get_linestyle() == "-"]
    return [np.column_stack(line.get_data()) for line in lines if to_hex(line.get_color()) == colour.lower()]


def test_colours_are_fixed_and_all_different() -> None:
    builtin = ["stn", "delta-stn", "stn-population", "fixed", "random", "grid", "tpe", "gp-bo"]
    builtin += ["hyperband", "asha", "median", "pbt", "pb2"]
    builtin += ["auto", "frozen", "progress-ratio", "replayed", "last-values"]
    colours = method_colours([*builtin, "mine", "yours"])
    assert len(set(colours.values())) == 20
    assert method_colours(["pbt", "stn"]) == {"pbt": colours["pbt"], "stn": colours["stn"]}


@pytest.mark.parametrize("x", ["cost_total", "wall_time_s"])
def test_the_curve_ends_at_the_value_of_the_table(results: Results, x: str) -> None:
    axes = plot_best_so_far(results, x).axes[0]
    table = summary(results).set_index("method")
    reached = results.reports.groupby("method")[x].max()
    for method, colour in method_colours(results.study["methods"]).items():
        (mean,) = thick(axes, colour)
        assert mean[-1].tolist() == [reached[method], table.loc[method, "best_val_loss"]]


def test_the_band_is_the_interval_of_the_table(results: Results) -> None:
    axes = plot_best_so_far(results).axes[0]
    table = summary(results).set_index("method")
    for method, band in zip(results.study["methods"], axes.collections, strict=True):
        (outline,) = band.get_paths()
        points = np.asarray(outline.vertices)
        at_end = points[points[:, 0] == points[:, 0].max(), 1]
        assert table.loc[method, "best_val_loss_low"] in at_end
        assert table.loc[method, "best_val_loss_high"] in at_end


def test_no_curve_is_filled_or_cut(results: Results) -> None:
    late = (results.reports["seed"] == 0) & (results.reports["cost_total"] < 5)
    short = (results.reports["seed"] == 1) & (results.reports["cost_total"] > 20)
    reports = results.reports[~late & ~short]
    cut = replace(results, reports=reports, incumbent=best_so_far(reports))
    axes = plot_best_so_far(cut).axes[0]
    for method, colour in method_colours(results.study["methods"]).items():
        (mean,) = thick(axes, colour)
        seeds = reports[reports["method"] == method].groupby("seed")["cost_total"]
        assert mean[np.isfinite(mean[:, 1]), 0].min() == seeds.min().max()
        assert mean[-1, 0] == seeds.max().max()


def test_of_many_runs_the_means_alone_are_shown_and_all_of_their_ends(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_runs = plot_best_so_far(results).axes[0]
    monkeypatch.setattr(plots, "_MANY_RUNS", 0)
    axes = plot_best_so_far(results).axes[0]
    methods = results.study["methods"]
    assert len(axes.lines) == len(methods) < len(with_runs.lines)
    low, high = axes.get_ylim()
    for colour in method_colours(methods).values():
        (mean,) = thick(axes, colour)
        (same,) = thick(with_runs, colour)
        np.testing.assert_array_equal(mean, same)
        assert low < mean[-1, 1] < high
        assert mean[0, 0] < axes.get_xlim()[1]


def test_schedules_show_the_best_trial_and_every_self_tuned_one(results: Results) -> None:
    dropout, decay = plot_schedules(results).axes
    assert (dropout.get_ylabel(), decay.get_ylabel()) == ("dropout", "weight_decay")
    assert decay.get_yscale() == "log"
    colours = method_colours(results.study["methods"])
    drawn = [to_hex(line.get_color()) for line in dropout.lines]
    assert drawn.count(colours["stn"].lower()) == 6
    assert drawn.count(colours["random"].lower()) == 3
    styles = {to_hex(line.get_color()): line.get_drawstyle() for line in dropout.lines}
    assert styles[colours["pbt"].lower()] == "steps-post"
    assert styles[colours["stn"].lower()] == "default"
    final = last_of_each_run(results.incumbent)
    best = final.loc[final["method"] == "stn", "trial_id"]
    rows = results.schedule[(results.schedule["hp"] == "dropout") & results.schedule["trial_id"].isin(best)]
    expected = [group[["step", "value"]].to_numpy() for _, group in rows.groupby("trial_id")]
    for got, want in zip(thick(dropout, colours["stn"]), expected, strict=True):
        np.testing.assert_array_equal(got[:-1], want)
        assert got[-1].tolist() == [results.reports["step"].max(), want[-1, 1]]


def test_final_values_have_a_dot_per_run(results: Results) -> None:
    for axes in plot_final_values(results).axes:
        assert [np.size(line.get_xdata()) for line in axes.lines] == [3, 3, 3]
        assert [label.get_text() for label in axes.get_yticklabels()] == results.study["methods"]


def test_names_are_shown_as_they_are(make_study: Callable[..., Path], tmp_path: Path) -> None:
    study = make_study(kinds={"$\\frac$": "constant", "_mine": "constant"}, hps=("_a", "$b$"), task="$t_$")
    paths = write_plots(load_results(study), tmp_path / "plots")
    assert [path.name for path in paths] == [
        f"{name}.png" for name in ("best_so_far_cost", "best_so_far_wall_time", "schedules", "final_values")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len(list((tmp_path / "plots").iterdir())) == 4


@pytest.mark.slow
def test_a_study_that_found_nothing_still_plots(results: Results, tmp_path: Path) -> None:
    reports = results.reports.assign(val_loss=np.nan)
    for rows in (reports, reports.iloc[:0]):
        nothing = replace(results, reports=rows, incumbent=best_so_far(rows))
        assert len(write_plots(nothing, tmp_path / "plots")) == 4
    legend = plot_best_so_far(nothing).legends[0]
    assert "no run has a finite" in legend.get_title().get_text()


def test_one_task_and_known_axes_only(results: Results) -> None:
    with pytest.raises(ValueError, match="'step' is not one of cost_total, wall_time_s"):
        plot_best_so_far(results, "step")
    two = replace(results, reports=results.reports.assign(task="other"))
    for plot in (plot_best_so_far, plot_schedules, plot_final_values):
        with pytest.raises(ValueError, match="digits-mlp, other"):
            plot(two)
