"""From the state folders of a study's runs to its three tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from tune_stn.study.incumbent import best_so_far
from tune_stn.study.run import SCHEDULE, Run
from tune_stn.tasks.task import Task
from tune_stn.training.tables import INCUMBENT, reports_schema, write_table
from tune_stn.training.tables import SCHEDULE as SCHEDULE_SCHEMA
from tune_stn.tuning.directory import Labels, labelled
from tune_stn.tuning.journal import REPORTS
from tune_stn.tuning.recorded import read_recorded, report_rows


def write_tables(task: Task, runs: Iterable[Run], directory: Path) -> None:
    """Write `reports`, `schedule` and `incumbent` of all runs that have begun."""
    metrics = [f"{split}_{name}" for name in task.metrics for split in ("val", "test")]
    schema = reports_schema(metrics, list(task.space))
    # Empty ones first: a study may have no rows.
    none = Labels(task=task.name, method="", seed=0)
    reports, schedules = ([labelled(pd.DataFrame(), none, one)] for one in (schema, SCHEDULE_SCHEMA))
    for run in runs:
        labels = Labels(task=task.name, method=run.method.name, seed=run.seed)
        reports.append(labelled(_report_rows(run), labels, schema))
        if (run.folder / SCHEDULE).exists():
            schedules.append(labelled(pd.read_parquet(run.folder / SCHEDULE), labels, SCHEDULE_SCHEMA))
    frame, schedule = (pd.concat([one for one in each if len(one)] or each[:1]) for each in (reports, schedules))
    write_table(frame, schema, directory / "reports.parquet")
    write_table(schedule, SCHEDULE_SCHEMA, directory / "schedule.parquet")
    write_table(best_so_far(frame), INCUMBENT, directory / "incumbent.parquet")


def _report_rows(run: Run) -> pd.DataFrame:
    record = run.done
    recorded = read_recorded(run.folder / REPORTS)
    if record is not None:
        # Of a run that an earlier version finished, the failures are named only here.
        recorded = replace(recorded, failures={**record["failures"], **recorded.failures})
    return report_rows(recorded, over=record is not None)
