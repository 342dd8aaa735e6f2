"""One row per method: what it found, what it cost, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd

from tune_stn.study.controls import FOLLOWED, control_cells, control_words
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.results import Results
from tune_stn.study.statistics import mean_interval
from tune_stn.training.tables import RUN_COLUMNS, hp_names

_TRIAL = [*RUN_COLUMNS, "trial_id"]


def summary(results: Results) -> pd.DataFrame:
    """Sum a study up, by increasing mean best validation loss; methods without a value come last.

    Returns:
        One row per task and method, with the columns `task, method`; `seeds`, how many runs the means of the losses are
        over; `best_val_loss` and `test_loss_at_best`, each with `_low` and `_high`, the 95 % interval of
        `statistics.mean_interval`; `cost` (plain-epoch equivalents), `wall_time_s` and `device_time_s` (seconds), each
        the mean of what the runs spent in total, what they are made from included (`Method.follows`), wall clock from
        when their first trial was placed; `startup_s`, the mean seconds before that, waiting for a slot included, and
        `slots_in_use`, the mean share of the time of a run's slots in which trials trained or evaluated, both of runs
        that have ended, NaN where these are not known; `trials`, `diverged`, `failed`, counts of trials over all runs,
        those that failed before their first report included; `missing`, how many of the study's seeds gave no value.
    """
    final, study = last_of_each_run(results.incumbent), results.study
    methods = dict.fromkeys((study["task"], method) for method in study["methods"])
    methods |= dict.fromkeys(zip(results.reports["task"], results.reports["method"], strict=True))
    rows = []
    for task, method in methods:
        reports, best = (
            frame[(frame["task"] == task) & (frame["method"] == method)] for frame in (results.reports, final)
        )
        row: dict[str, object] = {"task": task, "method": method, "seeds": len(best)}
        for column in ("best_val_loss", "test_loss_at_best"):
            interval = mean_interval(best[column])
            row |= {column: interval.mean, f"{column}_low": interval.low, f"{column}_high": interval.high}
        missing = len(set(study["seeds"]) - set(best["seed"]))
        first = results.reports[(results.reports["task"] == task) & (results.reports["method"] == FOLLOWED.get(method))]
        failures = [one for one in study.get("failures", ()) if (study["task"], one["method"]) == (task, method)]
        row |= _spent(reports, first) | _clock(study, method if task == study["task"] else None)
        rows.append(row | _trials(reports, failures) | {"missing": missing})
    frame = pd.DataFrame(rows)
    return frame.sort_values("best_val_loss", kind="stable", na_position="last").reset_index(drop=True)


def _spent(reports: pd.DataFrame, followed: pd.DataFrame) -> dict[str, float]:
    """Means over the runs of a method.

    Args:
        reports: Reports of the method.
        followed: Reports of the method whose runs its own are made from; their totals begin there, but not device time,
            which is counted within each trial, as `cost` is.
    """
    runs = reports.groupby(RUN_COLUMNS)
    paid = pd.concat([reports, followed[followed["seed"].isin(reports["seed"])]])
    device = paid.groupby(_TRIAL)["device_time_s"].max()
    return {
        "cost": runs["cost_total"].max().mean(),
        "wall_time_s": runs["wall_time_s"].max().mean(),
        "device_time_s": device.groupby("seed").sum().mean(),
    }


def _clock(study: Mapping[str, Any], method: str | None) -> dict[str, float]:
    """Means over the runs of a method that have ended, from `study.json`."""
    clocks = [one for one in study.get("clocks", ()) if one["method"] == method]
    return {
        name: pd.Series([one[name] for one in clocks], dtype=float).mean() for name in ("startup_s", "slots_in_use")
    }


def _trials(reports: pd.DataFrame, failures: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts of the trials of a method.

    Args:
        reports: Reports of the method.
        failures: Failures of its trials, with `seed` and `trial_id`, as in `study.json`.
    """
    reported, diverged, failed = (
        set(zip(rows["seed"], rows["trial_id"], strict=True))
        for rows in (reports, *(reports[reports["status"] == status] for status in ("diverged", "failed")))
    )
    failed |= {(failure["seed"], failure["trial_id"]) for failure in failures}
    return {"trials": len(reported | failed), "diverged": len(diverged), "failed": len(failed)}


def final_values(results: Results) -> pd.DataFrame:
    """Hyperparameter values at each run's final incumbent.

    Returns:
        One row per run: `task, method, seed, trial_id, best_val_loss` and the columns `hp/<name>`.
    """
    keys = [*_TRIAL, "cost_total", "best_val_loss"]
    reports = results.reports.assign(best_val_loss=results.reports["val_loss"]).drop_duplicates(keys)
    found = last_of_each_run(results.incumbent)[keys].merge(reports, on=keys, how="left")
    return found[[*_TRIAL, "best_val_loss", *(f"hp/{name}" for name in hp_names(found.columns))]]


def with_interval(mean: float, low: float, high: float) -> str:
    """A figure for the eye, e.g. `0.2312 [0.221, 0.240]`; without an interval the mean alone, `-` for NaN."""
    if isnan(mean):
        return "-"
    return f"{mean:.4g}" if isnan(low) else f"{mean:.4g} [{low:#.3g}, {high:#.3g}]"


def summary_cells(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of `summary` as text for people: heading -> cell, the same for the terminal and the report."""
    return [
        {
            "method": row["method"],
            "seeds": str(row["seeds"]),
            "best val loss": _loss(row, "best_val_loss"),
            "its test loss": _loss(row, "test_loss_at_best"),
            "cost": _plain(row["cost"]),
            "wall s": _plain(row["wall_time_s"]),
            "device s": _plain(row["device_time_s"]),
            "slots used": "-" if isnan(row["slots_in_use"]) else f"{100 * row['slots_in_use']:.0f} %",
            **{name: str(row[name]) for name in ("trials", "diverged", "failed", "missing")},
        }
        for row in frame.to_dict("records")
    ]


def _loss(row: dict[Any, Any], column: str) -> str:
    return with_interval(row[column], row[f"{column}_low"], row[f"{column}_high"])


def _plain(value: float) -> str:
    return "-" if isnan(value) else f"{value:.1f}"


def format_summary(frame: pd.DataFrame) -> str:
    """The rows of `summary` as a fixed-width table for the terminal, with a line per task that heads it."""
    blocks = []
    for task, rows in frame.groupby("task", sort=False):
        text = _in_columns(summary_cells(rows))
        blocks.append("\n".join([f"{task}: mean over seeds [95 % interval]; cost in plain epochs", *text]))
    return "\n\n".join(blocks)


def format_controls(results: Results) -> str:
    """What the gain of self-tuning is made of, for the terminal: a table and words about it, or an empty text.

    See `controls.control_shares` and `controls.control_words`.
    """
    words = control_words(results.study, results.incumbent)
    cells = control_cells(results.controls)
    head = ["gain in best validation loss over the start values (fixed), and the share of it that a control has"]
    return "\n".join([*(head + _in_columns(cells) if cells else []), *words])


def _in_columns(cells: list[dict[str, str]]) -> list[str]:
    """Lines of a fixed-width table with its headings, underlined."""
    lines = [list(cells[0]), *(list(row.values()) for row in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    return text
