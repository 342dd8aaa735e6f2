"""What the figures of the report show, as plain lists and numbers that `report.js` draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tune_stn.study.controls import FOLLOWED
from tune_stn.study.domains import bounds_of, looks_log, read_domains
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.plots import AXIS_LABELS, MANY_RUNS, present_methods, scale_band
from tune_stn.study.results import Results
from tune_stn.study.statistics import mean_curve
from tune_stn.study.summary import final_values
from tune_stn.training.tables import RUN_COLUMNS, hp_names, metric_names

LOSSES = {"best_val_loss": "validation loss", "test_loss_at_best": "test loss at the best validation loss"}
_POINTS = 240  # of a curve at most: more than that cannot be told apart on a page
_DIGITS = 5


def figures(results: Results) -> dict[str, Any]:
    """Everything that is drawn, of at most a few hundred points a curve, as JSON takes it.

    Args:
        results: A study of one task.

    Returns:
        `methods`, their names and colours; `axes` and `measures`, the names and labels of what curves can be drawn over
        and of; `wideLoss`, whether a log axis shows them better; `curves`, by axis and method; `schedules` and
        `values`, a list of panels each, one for each hyperparameter. Numbers have 5 significant digits; what is not
        finite is None.
    """
    found = with_metrics(results)
    metrics = [name for name in metric_names(results.reports.columns) if name in found]
    return {
        "methods": [
            {"name": name, "colour": colour, "dashed": name in FOLLOWED}  # or it would hide the one that it follows
            for name, colour in present_methods(results).items()
        ],
        "axes": [
            {"name": name, "label": label, "log": _is_wide(found, name, 50)} for name, label in AXIS_LABELS.items()
        ],
        "measures": [{"name": name, "label": label} for name, label in LOSSES.items()]
        + [{"name": name, "label": f"{name} at the best validation loss"} for name in metrics],
        "wideLoss": _is_wide(found, "best_val_loss", 5),
        "curves": {axis: _curves(results, found, axis, [*LOSSES, *metrics]) for axis in AXIS_LABELS},
        "schedules": _schedules(results),
        "values": _values(results),
    }


def with_metrics(results: Results) -> pd.DataFrame:
    """The incumbent table with the task's metrics beside the loss: those of the report that had the best loss."""
    numeric = results.reports.select_dtypes("number").columns
    # A trainable of one's own may report columns that have the names of the table's.
    metrics = [name for name in metric_names(numeric) if name not in results.incumbent.columns]
    keys = [*RUN_COLUMNS, "trial_id", "cost_total"]
    reports = results.reports.assign(best_val_loss=results.reports["val_loss"])[[*keys, "best_val_loss", *metrics]]
    return results.incumbent.merge(
        reports.drop_duplicates([*keys, "best_val_loss"]), on=[*keys, "best_val_loss"], how="left"
    )


def _curves(results: Results, found: pd.DataFrame, axis: str, measures: Sequence[str]) -> dict[str, Any]:
    """By method: the mean over its runs, a band of most of them, and each run where there are few in all."""
    ends = results.reports.groupby(RUN_COLUMNS)[axis].max()
    with_runs = found.groupby(RUN_COLUMNS).ngroups <= MANY_RUNS
    curves = {}
    for method in present_methods(results):
        rows = found[found["method"] == method]
        points = _thinned(np.unique([*rows[axis], ends[results.study["task"], method].max()]))
        of_measure = {name: mean_curve(rows, points, axis, name) for name in measures}
        runs: Any = rows.groupby(RUN_COLUMNS) if with_runs else ()
        curves[method] = {
            "x": _numbers(points),
            "y": {name: _numbers(curve["mean"]) for name, curve in of_measure.items()},
            "low": {name: _numbers(curve["low"]) for name, curve in of_measure.items() if curve["low"].notna().any()},
            "high": {
                name: _numbers(curve["high"]) for name, curve in of_measure.items() if curve["high"].notna().any()
            },
            "runs": [_run(run, key, axis, ends[key], measures) for key, run in runs],
        }
    return curves


def _run(run: pd.DataFrame, key: Sequence[Any], axis: str, end: float, measures: Sequence[str]) -> dict[str, Any]:
    kept = _thinned(np.arange(len(run)))
    values = {name: [*run[name].to_numpy()[kept], run[name].iloc[-1]] for name in measures}
    y = {name: _numbers(column) for name, column in values.items()}
    return {"seed": int(key[-1]), "x": _numbers([*run[axis].to_numpy()[kept], end]), "y": y}


def _schedules(results: Results) -> list[dict[str, Any]]:
    """A panel for each hyperparameter, with the best trial of each run; a value holds until the next change."""
    domains = read_domains(results.study)
    methods = present_methods(results)
    best = last_of_each_run(results.incumbent)[[*RUN_COLUMNS, "trial_id"]]
    rows = results.schedule.merge(best, on=[*RUN_COLUMNS, "trial_id"])
    last_steps = results.reports.groupby([*RUN_COLUMNS, "trial_id"])["step"].max()
    panels = []
    for name in hp_names(results.reports.columns):
        lines, own = [], rows[rows["hp"] == name]
        of_trials: Any = own.groupby([*RUN_COLUMNS, "trial_id"], sort=False)
        for key, trial in of_trials:
            if key[1] not in methods:
                continue
            kept = _thinned(np.arange(len(trial)))
            step = trial["step"].to_numpy()
            band = scale_band(trial, domains.get(name))
            edges = {side: _to_the_end(edge, kept) for side, edge in zip(("low", "high"), band or (), strict=False)}
            end = max(step[-1], last_steps.get(key, 0))
            line = {"method": key[1], "seed": int(key[2]), "x": _numbers([*step[kept], end])}
            lines.append(line | {"y": _to_the_end(trial["value"].to_numpy(), kept)} | edges)
        log = looks_log(domains.get(name), own["value"].to_numpy(dtype=np.float64))
        panels.append({"name": name, "log": log, "lines": lines})
    return panels


def _values(results: Results) -> list[dict[str, Any]]:
    """A panel for each hyperparameter: the value that each run found best, between the ends of the domain."""
    found, domains, panels = final_values(results), read_domains(results.study), []
    for name in hp_names(results.reports.columns):
        if found[f"hp/{name}"].dtype.kind not in "fi":
            continue
        domain, values = domains.get(name), found[f"hp/{name}"].to_numpy(dtype=np.float64)
        dots = [
            {"method": method, "seed": int(seed), "value": value}
            for method, seed, value in zip(found["method"], found["seed"], _numbers(values), strict=True)
            if value is not None
        ]
        ends = bounds_of(domain) if domain is not None else None
        panels.append({"name": name, "log": looks_log(domain, values), "ends": ends, "dots": dots})
    return panels


def _is_wide(found: pd.DataFrame, column: str, times: float) -> bool:
    """Whether the largest of positive values is so many times the smallest, so that only a log axis shows both."""
    return bool(len(found) and found[column].min() > 0 and found[column].max() > times * found[column].min())


def _to_the_end(values: NDArray[np.float64], kept: NDArray[Any]) -> list[float | None]:
    """The values that are kept, the last of them once more, for it holds to the end."""
    return _numbers([*values[kept], values[-1]])


def _thinned(points: NDArray[Any]) -> NDArray[Any]:
    """At most so many of the points; the first two, between which a warm-up lies, and the last stay."""
    if len(points) <= _POINTS:
        return points
    kept = np.linspace(1, len(points) - 1, _POINTS - 1).astype(int)
    return points[[0, *kept]]


def _numbers(values: ArrayLike | Iterable[float]) -> list[float | None]:
    array = np.asarray(values, dtype=np.float64)
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in array]
