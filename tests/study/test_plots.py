from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
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
    builtin += ["early-dropout", "late-dropout", "hyperband", "asha", "median", "pbt", "pb2"]
    builtin += ["auto", "frozen", "progress-ratio", "replayed", "last-values"]
    colours = method_colours([*builtin, "mine", "yours"])
    assert len(set(colours.values())) == 22
    assert method_colours(["pbt", "stn"]) == {"pbt": colours["pbt"], "stn": colours["stn"]}


@pytest.mark.parametrize("x", ["cost_total", "wall_time_s"])
def test_the_curve_ends_at_the_value_of_the_table(results: Results, x: str) -> None:
    axes = plot_best_so_far(results, x).axes[0]
    table = summary(results).set_index("method")
    reached = results.reports.groupby("method")[x].max()
    for method, colour in method_colours(results.study["methods"]).items():
        (mean,) = thick(axes, colour)
        assert mean[-1].tolist() == [reached[method], table.loc[method, "best_val_loss"]]


@pytest.mark.parametrize(("seeds", "banded"), [(2, False), (5, True)])
def test_a_band_holds_most_runs_and_is_there_from_five_on(
    make_study: Callable[..., Path], seeds: int, banded: bool
) -> None:
    found = load_results(make_study(kinds={"stn": "self-tuned"}, seeds=range(seeds)))
    axes = plot_best_so_far(found).axes[0]
    vertices = [np.asarray(path.vertices) for path in axes.collections[0].get_paths()]
    assert bool(vertices) == banded
    for losses in (points[:, 1] for points in vertices):
        assert found.incumbent["best_val_loss"].min() <= losses.min()
        assert losses.max() <= found.incumbent["best_val_loss"].max()


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
    monkeypatch.setattr(plots, "MANY_RUNS", 0)
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


def test_a_run_that_follows_another_one_does_not_widen_the_frame(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MANY_RUNS", 0)
    low, high = plot_best_so_far(results).axes[0].get_ylim()
    late = {}
    for name in ("incumbent", "reports"):
        frame = getattr(results, name)
        rows = frame[frame["method"] == "random"].copy()
        rows["cost_total"] += results.reports["cost_total"].max()
        late[name] = pd.concat([frame, rows.assign(method="replayed")], ignore_index=True)
    late["incumbent"].loc[late["incumbent"]["method"] == "replayed", "best_val_loss"] += 100.0
    followed = plot_best_so_far(replace(results, **late)).axes[0].get_ylim()
    assert followed[1] < 100 < high + 100
    assert followed[0] == pytest.approx(low, abs=high - low)


def test_schedules_show_the_best_trial_and_every_self_tuned_one(results: Results) -> None:
    dropout, decay = plot_schedules(results).axes
    assert (dropout.get_ylabel(), decay.get_ylabel()) == ("dropout", "weight_decay")
    assert decay.get_yscale() == "log"
    colours = method_colours(results.study["methods"])
    drawn = [to_hex(line.get_color()) for line in dropout.lines]
    assert drawn.count(colours["stn"].lower()) == 6
    assert drawn.count(colours["random"].lower()) == 3
    assert {line.get_drawstyle() for line in dropout.lines} == {"steps-post"}  # so a warm-up is flat
    assert len(dropout.collections) == 3  # bands of a scale: of each best trial that has one
    final = last_of_each_run(results.incumbent)
    best = final.loc[final["method"] == "stn", "trial_id"]
    rows = results.schedule[(results.schedule["hp"] == "dropout") & results.schedule["trial_id"].isin(best)]
    expected = [group[["step", "value"]].to_numpy() for _, group in rows.groupby("trial_id")]
    for got, want in zip(thick(dropout, colours["stn"]), expected, strict=True):
        np.testing.assert_array_equal(got[:-1], want)
        assert got[-1].tolist() == [results.reports["step"].max(), want[-1, 1]]


@pytest.mark.parametrize("known", [True, False])
def test_an_axis_is_logarithmic_by_the_domain_and_by_the_values_only_where_it_is_not_known(
    make_study: Callable[..., Path], known: bool
) -> None:
    found = load_results(make_study(kinds={"auto": "self-tuned"}))
    # The values of dropout begin to spread like those of a log domain, those of weight decay do not.
    near = found.schedule["value"].where(found.schedule["hp"] != "weight_decay", 0.1)
    spread = near.where(found.schedule["hp"] != "dropout", np.geomspace(1e-4, 0.5, len(near)))
    if not known:
        del found.study["domains"]
    dropout, decay = plot_schedules(replace(found, schedule=found.schedule.assign(value=spread))).axes
    assert [dropout.get_yscale(), decay.get_yscale()] == (["linear", "log"] if known else ["log", "linear"])
    assert not dropout.collections  # auto does not draw by its scale


def test_final_values_have_a_dot_per_run(results: Results) -> None:
    for axes in plot_final_values(results).axes:
        assert [np.size(line.get_xdata()) for line in axes.lines] == [3, 3, 3]
        assert [label.get_text() for label in axes.get_yticklabels()] == results.study["methods"]


@pytest.mark.slow
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
