"""The directory of a recorder: a journal, and what `load_results` reads: two tables and a description."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pandas.api.types import is_numeric_dtype

from tune_stn.files import whole_file
from tune_stn.training.tables import (
    SCHEDULE_SCHEMA,
    STUDY_SCHEMA_VERSION,
    choice_names,
    hp_names,
    metric_names,
    reports_schema,
    write_table,
)
from tune_stn.tuning.recording.tables import Recorded, report_rows, schedule_rows


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The columns that name a run in all tables."""

    task: str
    method: str
    seed: int


def labelled(rows: pd.DataFrame, labels: Labels, schema: pa.Schema) -> pd.DataFrame:
    """Rows of one run with exactly the columns of a schema; NaN in a column that they lack."""
    frame = rows.assign(**vars(labels)).reindex(columns=schema.names)
    return frame.astype({field.name: float for field in schema if pa.types.is_floating(field.type)})


def write_directory(
    directory: Path,
    recorded: Recorded,
    labels: Labels,
    *,
    own_schedules: pd.DataFrame | None,
    over: bool,
    settings: Mapping[str, Any],
) -> None:
    """Write `reports.parquet`, `schedule.parquet` and `study.json`, each whole or not at all.

    All numbers that the trials reported become columns, and all hyperparameters.
    """
    rows = report_rows(recorded, over=over)
    hps = hp_names(rows.columns)
    scales = {f"scale/{hp}" for hp in hps}
    numeric = [name for name in rows.columns if is_numeric_dtype(rows[name]) and name not in scales]
    schema = reports_schema(metric_names(numeric), hps, choice_names(rows.columns))
    schedule = schedule_rows(recorded, own_schedules)
    write_table(labelled(rows, labels, schema), schema, directory / "reports.parquet")
    frame = labelled(schedule, labels, SCHEDULE_SCHEMA)
    if recorded.integers:
        frame.attrs["integers"] = sorted(recorded.integers)  # for `Schedule`, for the column is one of floats
    write_table(frame, SCHEDULE_SCHEMA, directory / "schedule.parquet")
    study = {
        "schema_version": STUDY_SCHEMA_VERSION,
        "task": labels.task,
        "methods": [labels.method],
        "seeds": [labels.seed],
        "recorder": dict(settings),
        "versions": {"python": platform.python_version()} | {one: metadata.version(one) for one in ("tune_stn", "ray")},
        "failures": dict(recorded.failures),
        "missing": [],
    }
    write_study(directory, study)


def write_study(directory: Path, study: Mapping[str, Any]) -> None:
    """Write `study.json`, whole or not at all."""
    with whole_file(directory / "study.json") as path:
        path.write_text(json.dumps(study, indent=1) + "\n")
