"""A study's tables as TensorBoard files, a folder for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tensorboardX import SummaryWriter

from tune_stn.study.results import Results
from tune_stn.training.tables import hp_names, metric_names

_TRIAL = ["method", "seed", "trial_id"]
_ALWAYS = ["train_loss", "val_loss", "test_loss", "cost", "cost_total", "device_time_s"]


def export_tensorboard(results: Results, directory: Path) -> None:
    """Write the reports and schedules of all trials, by training step, into `METHOD-seedSEED/TRIAL` of a directory.

    Tags are the losses, the task's metrics, `cost`, `cost_total`, `device_time_s`, `hp/<name>` and `scale/<name>`: the
    last two at every hyper-step, as in the table `schedule`. Time is the run's wall clock, in seconds from 0. What is
    empty in a table (NaN) is left out; event files that are there from before are replaced.

    Args:
        results: Results of a study.
        directory: Made where it is missing.
    """
    schedules: Any = dict(list(results.schedule.groupby(_TRIAL, sort=False)))
    trials: Any = results.reports.groupby(_TRIAL, sort=False)
    for (method, seed, trial), reports in trials:
        folder = directory / f"{method}-seed{seed}" / str(trial)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(folder)) as writer:
            for tag, series in _series(reports, schedules.get((method, seed, trial))).items():
                times = np.interp(series.index, reports["step"].cummax(), reports["wall_time_s"])
                for step, value, time in zip(series.index.tolist(), series.tolist(), times.tolist(), strict=True):
                    writer.add_scalar(tag, value, step, walltime=time)


def _series(reports: pd.DataFrame, schedule: pd.DataFrame | None) -> Mapping[str, pd.Series]:
    """Tag -> values by increasing step; the newest of several at a step."""
    found: dict[str, list[pd.Series]] = {}
    at = reports.set_index("step")
    names = [*_ALWAYS, *metric_names(reports.columns), *(f"hp/{name}" for name in hp_names(reports.columns))]
    for name in names:
        found[name] = [at[name]]
    if schedule is not None:
        for hp, rows in schedule.set_index("step").groupby("hp"):
            found.setdefault(f"hp/{hp}", []).append(rows["value"])
            found[f"scale/{hp}"] = [rows["scale"].astype(float)]
    whole = {tag: pd.concat(parts).dropna() for tag, parts in found.items()}
    return {tag: one[~one.index.duplicated(keep="last")].sort_index() for tag, one in whole.items() if len(one)}
