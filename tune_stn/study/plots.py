"""Pictures of a study: best-so-far, hyperparameter schedules, final values. No global matplotlib state."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from tune_stn.files import whole_file
from tune_stn.space.domains import Domain
from tune_stn.study.domains import looks_log, read_domains, values_of_raw
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.results import Results
from tune_stn.study.statistics import mean_curve
from tune_stn.study.summary import final_values
from tune_stn.training.tables import RUN_COLUMNS, hp_names

# Okabe and Ito's palette, told apart by colour-blind readers, and Tol's muted colours beyond its eight.
_COLOURS = {
    "stn": "#0072B2",
    "delta-stn": "#D55E00",
    "auto": "#332288",
    "stn-population": "#56B4E9",
    "fixed": "#7F7F7F",
    "random": "#E69F00",
    "early-dropout": "#CC6677",
    "late-dropout": "#AA7744",
    "grid": "#999933",
    "tpe": "#009E73",
    "gp-bo": "#117733",
    "hyperband": "#882255",
    "asha": "#AA4499",
    "median": "#661100",
    "pbt": "#CC79A7",
    "pb2": "#000000",
    "frozen": "#88CCEE",
    "progress-ratio": "#44AA99",
    "replayed": "#6699CC",
    "last-values": "#DDCC77",
}
_SPARE = ["#B2B200", "#4B0092", "#F4A6C0"]
NOT_PERTURBED = ("auto", "progress-ratio", "frozen")  # methods that have a scale but train at the very values
MANY_RUNS = 30  # more than that hide each other
AXIS_LABELS = {
    "cost_total": "cost (plain-epoch equivalents)",
    "wall_time_s": "wall-clock time (seconds from the run's first trial)",
}


class Picture(Figure):
    """A figure that a notebook shows, without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100)
        return file.getvalue()


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour per method, the same in all plots; built-in methods have the same one in all studies too."""
    unknown = sorted(set(methods) - set(_COLOURS))
    spare = {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(unknown)}
    return {name: _COLOURS.get(name) or spare[name] for name in methods}


def plot_best_so_far(results: Results, x: str = "cost_total") -> Figure:
    """Best validation loss so far against `x`, `cost_total` or `wall_time_s`.

    Thin lines are single runs, each to a dot where it ended. The thick line is the mean, from where every run has a
    value; a run that ended earlier holds its value. From 5 runs of a method on, a band shows the middle 80 % of them.
    Of many runs only means and bands are shown, and of these the part in which methods still differ when half is spent.

    Raises:
        ValueError: the study holds several tasks, or `x` is something else.
    """
    if x not in AXIS_LABELS:
        raise ValueError(f"x={x!r} is not one of {', '.join(AXIS_LABELS)}")
    task = _only_task(results)
    figure = Picture(figsize=(8, 5), layout="constrained")
    axes = _plain(figure.add_subplot())
    many = results.incumbent.groupby(RUN_COLUMNS).ngroups > MANY_RUNS
    methods = present_methods(results)
    means, shade = {}, min(0.12, 0.4 / max(1, len(methods)))  # of many bands on each other the lines are still seen
    for method, colour in methods.items():
        if not many:
            _draw_runs(axes, results, method, x, colour)
        runs = results.incumbent[results.incumbent["method"] == method]
        points = np.unique([*runs[x], results.reports.loc[results.reports["method"] == method, x].max()])
        means[method] = curve = mean_curve(runs, points, axis=x)
        axes.step(points, curve["mean"], where="post", color=colour, lw=2)
        axes.fill_between(points, curve["low"], curve["high"], step="post", color=colour, alpha=shade, linewidth=0)
    if many:
        _frame_second_half(axes, list(means.values()), results.reports[x].max() / 2, x)
    else:
        _limit(axes, results, x)
    axes.set(xlabel=AXIS_LABELS[x], ylabel="best validation loss so far")
    axes.set_title(_text(f"Best validation loss so far on {task}"), loc="left", fontweight="bold")
    banded = any(curve["low"].notna().any() for curve in means.values())
    notes = ["thick: mean", "band: the middle 80 % of the runs" if banded else "", "thin: one run, to its end"]
    _legend(figure, results, "; ".join(filter(None, notes[:2] if many else notes)))
    return figure


def _draw_runs(axes: Axes, results: Results, method: str, x: str, colour: str) -> None:
    ends = results.reports.groupby(RUN_COLUMNS)[x].max()
    by_run: Any = results.incumbent[results.incumbent["method"] == method].groupby(RUN_COLUMNS)
    for key, run in by_run:
        at, loss, end = run[x].to_numpy(), run["best_val_loss"].to_numpy(), ends.loc[key]
        axes.step([*at, end], [*loss, loss[-1]], where="post", color=colour, lw=0.8, alpha=0.45)
        axes.plot(end, loss[-1], ".", color=colour, alpha=0.6)


def _frame_second_half(axes: Axes, curves: list[pd.DataFrame], half: float, x: str) -> None:
    """Frame the means from half of the axis on, and how they come there.

    A run that follows another one begins late, as high as all begin: it is in the frame from where it has come down.
    """
    means = pd.concat([curve for curve in curves if curve[x].min() < half] or curves)
    values = means.loc[means[x] >= half, "mean"]
    low, high = values.min(), values.max()
    axes.set_xscale("log")
    if high > low:
        axes.set_ylim(low - 0.15 * (high - low), high + 0.3 * (high - low))
        axes.set_xlim(left=means.loc[means["mean"] <= axes.get_ylim()[1], x].min())


def _limit(axes: Axes, results: Results, x: str) -> None:
    """Frame the runs, not the bands, which at three seeds may be wider than all there is to see."""
    loss, at = results.incumbent["best_val_loss"], results.incumbent[x]
    if loss.empty:
        return
    if at.min() > 0 and results.reports[x].max() > 50 * at.min():
        axes.set_xscale("log")
    low, high = loss.min(), loss.max()
    if low > 0 and high > 5 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
    elif high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def plot_schedules(results: Results) -> Figure:
    """Each hyperparameter over training steps, a panel each, for the best trial of each run.

    Thick lines are trials that changed their hyperparameters. A value holds until the next change, so a warm-up is
    flat. All self-tuned trials of a run are drawn, those that are not its best thinly. Constant values are thin too. A
    band is one scale of the perturbation on each side, of the best trials, where `study.json` says the domains. The
    axis is logarithmic where the domain is.

    Raises:
        ValueError: the study holds several tasks.
    """
    task = _only_task(results)
    names = hp_names(results.reports.columns)
    figure, panels = _panels(names, height=3.2)
    colours = present_methods(results)
    best = set(last_of_each_run(results.incumbent)[[*RUN_COLUMNS, "trial_id"]].itertuples(index=False, name=None))
    last_step = results.reports.groupby([*RUN_COLUMNS, "trial_id"])["step"].max()
    domains = read_domains(results.study)
    drawn: dict[str, list[float]] = {name: [] for name in names}
    trial_of_row = pd.MultiIndex.from_frame(results.schedule[[*RUN_COLUMNS, "trial_id"]])
    self_tuned = trial_of_row[results.schedule["source"] == "stn"].unique()
    shown = results.schedule[trial_of_row.isin(best) | trial_of_row.isin(self_tuned)]  # of thousands, most are neither
    curves: Any = shown.groupby([*RUN_COLUMNS, "trial_id", "hp"], sort=False)
    for (*trial, name), rows in curves:
        key, method = tuple(trial), trial[1]
        is_best = key in best
        if name not in panels or method not in colours:
            continue
        step, value = rows["step"].tolist(), rows["value"].tolist()
        end = max(step[-1], last_step.get(key, 0))
        if is_best and (band := scale_band(rows, domains.get(name))) is not None:
            low, high = ([*edge, edge[-1]] for edge in band)
            panels[name].fill_between(
                [*step, end], low, high, step="post", color=colours[method], alpha=0.08, linewidth=0
            )
        panels[name].plot(
            [*step, end],
            [*value, value[-1]],
            drawstyle="steps-post",
            color=colours[method],
            lw=1.8 if is_best and len(set(value)) > 1 else 0.9,
            alpha=0.9 if is_best else 0.4,
        )
        drawn[name].extend(value)
    for name, axes in panels.items():
        if looks_log(domains.get(name), drawn[name]):
            axes.set_yscale("log")
        axes.set(xlabel="training step (batches)", ylabel=_text(name))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.suptitle(_text(f"Hyperparameter schedules on {task}"), fontweight="bold", x=0.01, ha="left")
    _legend(figure, results, note="the best trial of each run; thin: constant, or not the best of its run")
    return figure


def plot_final_values(results: Results) -> Figure:
    """Hyperparameter values at the final incumbent, a panel each, a dot per run; log axes where the domain is log.

    Raises:
        ValueError: the study holds several tasks.
    """
    task = _only_task(results)
    values = final_values(results)
    colours, domains = present_methods(results), read_domains(results.study)
    figure, panels = _panels(hp_names(results.reports.columns), height=1 + 0.45 * len(colours))
    for name, axes in panels.items():
        for row, (method, colour) in enumerate(colours.items()):
            value = values.loc[values["method"] == method, f"hp/{name}"].to_numpy(dtype=np.float64)
            spread = row + 0.12 * (np.arange(len(value)) - (len(value) - 1) / 2)
            axes.plot(value, spread, "o", color=colour, ms=7, alpha=0.8, mec="white")
        domain = domains.get(name)
        if looks_log(domain, values[f"hp/{name}"].to_numpy(dtype=np.float64)):
            axes.set_xscale("log")
        axes.set_yticks(range(len(colours)), [_text(method) for method in colours])
        axes.set_ylim(max(len(colours), 1) - 0.5, -0.5)
        axes.set_xlabel(_text(name))
    title = f"Hyperparameter values each run found best on {task}"
    figure.suptitle(_text(title), fontweight="bold", x=0.01, ha="left")
    return figure


PLOTS: Mapping[str, Callable[[Results], Figure]] = {
    "incumbent": plot_best_so_far,
    "incumbent-seconds": partial(plot_best_so_far, x="wall_time_s"),
    "schedule": plot_schedules,
    "final-values": plot_final_values,
}
"""Kinds of `Results.plot`."""


def write_plots(results: Results, directory: Path) -> list[Path]:
    """Write all pictures as PNG files into `directory`, made where missing; returns their paths."""
    figures = {
        "best_so_far_cost": plot_best_so_far(results, "cost_total"),
        "best_so_far_wall_time": plot_best_so_far(results, "wall_time_s"),
        "schedules": plot_schedules(results),
        "final_values": plot_final_values(results),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        with whole_file(directory / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    return [directory / f"{name}.png" for name in figures]


def _only_task(results: Results) -> str:
    tasks = sorted({results.study["task"], *results.reports["task"]})
    if len(tasks) > 1:
        raise ValueError(f"plots show one task, the study holds {', '.join(tasks)}; select one")
    return str(tasks[0])


def present_methods(results: Results) -> dict[str, str]:
    """Colour of each method that found something, in the study's order of methods."""
    found = set(results.incumbent["method"])
    colours = method_colours(dict.fromkeys([*results.study["methods"], *results.reports["method"]]))
    return {method: colour for method, colour in colours.items() if method in found}


def _panels(names: Sequence[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    columns = min(len(names), 3) or 1
    rows = -(-len(names) // columns) or 1
    figure = Picture(figsize=(max(4.2 * columns, 7), height * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in grid[len(names) :]:
        empty.set_axis_off()
    return figure, {name: _plain(axes) for name, axes in zip(names, grid, strict=False)}


def _plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def scale_band(rows: pd.DataFrame, domain: Domain | None) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The values one scale below and above a schedule's raw coordinates.

    Args:
        rows: Rows of the `schedule` table, of one hyperparameter of one trial; shape `(n, ...)`.
        domain: The domain of that hyperparameter; None where it is not known.

    Returns:
        Two arrays of shape `(n,)`; None where the domain is not known, or the trial has no scale or does not draw by
        it.
    """
    if rows["method"].isin(NOT_PERTURBED).any():
        return None
    raw, scale = (rows[name].to_numpy(dtype=np.float64) for name in ("raw", "scale"))
    if domain is None or not np.isfinite(raw + scale).all():
        return None
    return values_of_raw(domain, raw - scale), values_of_raw(domain, raw + scale)


def _legend(figure: Figure, results: Results, note: str) -> None:
    seeds = results.incumbent.groupby("method")["seed"].nunique()
    asked = len(results.study["seeds"])
    colours = present_methods(results)
    lines = [Line2D([], [], color=colour, lw=2.4) for colour in colours.values()]
    labels = [_text(f"{method} ({seeds[method]} of {asked} seeds)") for method in colours]
    fitting = int(15 * figure.get_figwidth() / (8 + max(map(len, labels), default=0)))  # 15 letters an inch
    figure.legend(
        lines,
        labels,
        loc="outside lower center",
        ncols=max(1, min(len(lines), fitting)),
        frameon=False,
        fontsize="small",
        title=note if colours else "no run has a finite validation loss",
        title_fontsize="small",
    )


def _text(name: str) -> str:
    """A user's name as it is: no mathematics between dollars, no label hidden for its leading underscore."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
