"""From the state folders of a study's runs to its three tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from tune_stn.study.incumbent import best_so_far
from tune_stn.study.seal import (
    DONE,
    SCHEDULE,
    has_unfit_files,
    is_sealed,
    read_done,
    rows_of_tables,
    why_unfit,
)
from tune_stn.study.state import (
    clock_of,
    failures_of,
    missing_of,
    restarts_of,
    state_folder,
)
from tune_stn.tasks.task import Task
from tune_stn.training.schedule_sources import read_frame
from tune_stn.training.tables import (
    INCUMBENT_SCHEMA,
    SCHEDULE_SCHEMA,
    hp_names,
    read_table,
    reports_schema,
    write_table,
)
from tune_stn.tuning.recording.directory import Labels, labelled
from tune_stn.tuning.recording.journal import REPORTS, read_reports
from tune_stn.tuning.recording.tables import Recorded, read_recorded, report_rows, schedule_rows

if TYPE_CHECKING:
    from tune_stn.study.run import Run

TABLES = ("reports", "schedule", "incumbent")


def write_tables(task: Task, runs: Iterable[Run], directory: Path) -> None:
    """Write `reports`, `schedule` and `incumbent` of all runs that have begun."""
    labels = [(Labels(task=task.name, method=run.method.name, seed=run.seed), run.folder) for run in runs]
    _write(task.name, labels, reports_schema(metrics_of(task), list(task.space)), directory, before=directory)


def metrics_of(task: Task) -> list[str]:
    """Columns of the task's own metrics."""
    return [f"{split}_{name}" for name in task.metrics for split in ("val", "test")]


def is_behind(directory: Path) -> bool:
    """Whether the tables of a study lack what its runs have done since: it runs, or was killed."""
    tables = [directory / f"{name}.parquet" for name in TABLES]
    if not any(table.exists() for table in tables):
        return True
    if not all(table.exists() for table in tables):
        return (directory / "state").is_dir()
    written = min(table.stat().st_mtime_ns for table in tables)
    return any(
        path.stat().st_mtime_ns > written for name in (REPORTS, DONE) for path in directory.glob(f"state/*/{name}")
    )


def outdate(directory: Path) -> None:
    """Have the tables of a study count as older than whatever its runs write from now on: clocks are set back, too."""
    for name in TABLES:
        with suppress(FileNotFoundError):
            os.utime(directory / f"{name}.parquet", (0, 0))


def runs_of(study: Mapping[str, Any], directory: Path) -> list[tuple[Labels, Path]]:
    """The runs of a study, and their state folders, whether or not they have begun."""
    return [
        (Labels(task=study["task"], method=method, seed=seed), state_folder(directory, method, seed))
        for seed in study["seeds"]
        for method in study["methods"]
    ]


def is_damaged(study: Mapping[str, Any], directory: Path) -> bool:
    """Whether files of a finished run do not fit its seal."""
    return any(why_unfit(folder) for _, folder in runs_of(study, directory))


def not_sealed(study: Mapping[str, Any], directory: Path) -> list[str]:
    """The finished runs whose files cannot be checked, for an earlier version wrote them: as folders of the study."""
    folders = [folder for _, folder in runs_of(study, directory) if not is_sealed(folder)]
    return [folder.relative_to(directory).as_posix() for folder in folders]


def read_state(study: Mapping[str, Any], directory: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables of a study as its runs are now, and what is missing.

    Args:
        study: Its `study.json`.
        directory: Directory of the study; nothing is written there.

    Returns:
        The tables by name, and what `study.json` would say now: `missing`, `failures`, `restarts` and `clocks`.
    """
    runs = runs_of(study, directory)
    if "hyperparameters" in study:
        metrics, hps = study["metrics"], study["hyperparameters"]
    else:  # of an earlier version
        columns = [name for _, folder in runs for report in read_reports(folder / REPORTS)[:1] for name in report]
        found = [name for name in dict.fromkeys(columns) if name.startswith(("val_", "test_"))]
        metrics = [name for name in found if name not in ("val_loss", "test_loss")]
        hps = hp_names(dict.fromkeys(columns))
    with tempfile.TemporaryDirectory() as scratch:
        _write(study["task"], runs, reports_schema(metrics, hps), Path(scratch), before=directory)
        tables = {name: read_table(Path(scratch) / f"{name}.parquet", name) for name in TABLES}
    before = {(entry["method"], entry["seed"]): entry for entry in study["missing"]}
    missing, failures, restarts, clocks = [], [], [], []
    for labels, folder in runs:
        entry = missing_of(labels.method, labels.seed, folder, study.get("budget"))
        said = before.get((labels.method, labels.seed))
        if said and (not folder.exists() or (entry and said["reason"].endswith(entry["reason"]))):
            entry = said  # which may say why no more was done
        missing.extend([entry] if entry else [])
        failures.extend(failures_of(labels.method, labels.seed, folder))
        restarts.extend(restarts_of(labels.method, labels.seed, folder))
        clocks.extend(clock_of(labels.method, labels.seed, folder))
    return tables, {"missing": missing, "failures": failures, "restarts": restarts, "clocks": clocks}


def _write(task: str, runs: Sequence[tuple[Labels, Path]], schema: pa.Schema, directory: Path, *, before: Path) -> None:
    """Write the tables into a directory; of a run that does not fit its seal, with the rows of the tables `before`."""
    # Empty ones first: a study may have no rows.
    none = Labels(task=task, method="", seed=0)
    reports, schedules = ([labelled(pd.DataFrame(), none, one)] for one in (schema, SCHEDULE_SCHEMA))
    for labels, folder in runs:
        if has_unfit_files(folder):
            if rows := rows_of_tables(before, labels.method, labels.seed, folder):
                reports.append(labelled(rows["reports"], labels, schema))
                schedules.append(labelled(rows["schedule"], labels, SCHEDULE_SCHEMA))
            continue
        recorded, over = _recorded(folder)
        reports.append(labelled(report_rows(recorded, over=over), labels, schema))
        if (folder / SCHEDULE).exists():
            schedules.append(labelled(read_frame(folder / SCHEDULE), labels, SCHEDULE_SCHEMA))
        elif len(recorded.reports):  # what the reports say; of every hyper-step, checkpoints will say it at the end
            schedules.append(labelled(schedule_rows(recorded), labels, SCHEDULE_SCHEMA))
    frame, schedule = (pd.concat([one for one in each if len(one)] or each[:1]) for each in (reports, schedules))
    write_table(frame, schema, directory / "reports.parquet")
    write_table(schedule, SCHEDULE_SCHEMA, directory / "schedule.parquet")
    write_table(best_so_far(frame), INCUMBENT_SCHEMA, directory / "incumbent.parquet")


def _recorded(folder: Path) -> tuple[Recorded, bool]:
    """The journal of a run, and whether the run has ended."""
    record = read_done(folder)
    recorded = read_recorded(folder / REPORTS)
    if record is not None:
        # Of a run that an earlier version finished, the failures are named only here.
        recorded = replace(recorded, failures={**record["failures"], **recorded.failures})
    return recorded, record is not None
