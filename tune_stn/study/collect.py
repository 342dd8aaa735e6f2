"""From the state folders of a study's runs to its three tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tune_stn.study.incumbent import best_so_far
from tune_stn.study.run import REPORTS, SCHEDULE, Run
from tune_stn.study.tables import INCUMBENT, reports_schema, write_table
from tune_stn.study.tables import SCHEDULE as SCHEDULE_SCHEMA
from tune_stn.tasks.task import Task
from tune_stn.tuning.recorder import read_reports


def write_tables(task: Task, runs: Iterable[Run], directory: Path) -> None:
    """Write `reports`, `schedule` and `incumbent` of all runs that have begun."""
    reports: list[dict[str, Any]] = []
    schedules: list[pd.DataFrame] = []
    for run in runs:
        labels: dict[str, Any] = {"task": task.name, "method": run.method.name, "seed": run.seed}
        reports += [labels | row for row in _report_rows(run)]
        if (run.folder / SCHEDULE).exists():
            schedule = pd.read_parquet(run.folder / SCHEDULE)
            schedules.append(schedule.assign(task=task.name, method=run.method.name, seed=run.seed))
    metrics = [f"{split}_{name}" for name in task.metrics for split in ("val", "test")]
    schema = reports_schema(metrics, list(task.space))
    frame = pd.DataFrame(reports, columns=schema.names)
    numbers = [field.name for field in schema if pa.types.is_floating(field.type)]
    frame = frame.astype(dict.fromkeys(numbers, float))  # of a study without reports, too
    everything = pd.concat(schedules) if schedules else pd.DataFrame(columns=SCHEDULE_SCHEMA.names)
    write_table(frame, schema, directory / "reports.parquet")
    write_table(everything[SCHEDULE_SCHEMA.names], SCHEDULE_SCHEMA, directory / "schedule.parquet")
    write_table(best_so_far(frame), INCUMBENT, directory / "incumbent.parquet")


def _report_rows(run: Run) -> list[dict[str, Any]]:
    """A run's reports in order, numbered by trial; a trial's last one says how it ended."""
    record = run.done
    failures = record["failures"] if record else {}
    rows = read_reports(run.folder / REPORTS)
    counts: dict[str, int] = {}
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        trial = row["trial_id"]
        row["report_index"] = counts[trial] = counts.get(trial, -1) + 1
        last[trial] = row
    for trial, row in last.items():
        if row["status"] == "running" and record is not None:
            row["status"] = "failed" if trial in failures else "stopped"
    return rows
