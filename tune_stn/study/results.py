"""A study's directory as data frames, and its export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tune_stn.study.collect import is_behind, read_state
from tune_stn.study.controls import control_shares
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.trained import Best, best_of
from tune_stn.training.tables import (
    INCUMBENT,
    SCHEDULE,
    STUDY_SCHEMA_VERSION,
    choice_names,
    hp_names,
    metric_names,
    read_table,
    reports_schema,
    whole_file,
    write_table,
)

FORMATS = ("parquet", "csv")
_STUDY_KEYS = {"task": str, "methods": list, "seeds": list, "missing": list}


@dataclass(frozen=True, eq=False)
class Results:
    """What a study found.

    Attributes:
        path: the study's directory.
        study: `study.json`: task, methods, seeds, budget, settings, versions, machine, missing runs.
        reports: one row per report of a trial.
        schedule: one row per change of a hyperparameter.
        incumbent: best-so-far, one row per improvement.
    """

    path: Path
    study: dict[str, Any]
    reports: pd.DataFrame
    schedule: pd.DataFrame
    incumbent: pd.DataFrame

    @property
    def controls(self) -> pd.DataFrame:
        """How much of the gain of `auto` over the start values each of its controls has: see `control_shares`."""
        return control_shares(self.incumbent)

    def best(self, method: str | None = None, seed: int | None = None) -> Best:
        """The best epoch, by validation loss: trial, hyperparameters, metrics and checkpoint.

        Args:
            method: The name of one; default None for all.
            seed: One of the seeds; default None for all.

        Raises:
            ValueError: There is no finite validation loss of it.
        """
        return best_of(self, method, seed)


def load_results(directory: str | Path) -> Results:
    """Read a study that `tune-stn compare` wrote, or a run that a `Recorder` wrote, whose best-so-far is computed here.

    Of a study that is still running, or was killed, everything that its runs have reported so far is there, and
    `study["missing"]` says what is not.

    Raises:
        NotADirectoryError: `directory` is none.
        FileNotFoundError: it holds no study, or a table is missing.
        ValueError: a file is damaged or of another schema version.
    """
    path = Path(directory)
    if not path.is_dir():
        raise NotADirectoryError(f"not a directory: {path}")
    study = _read_study(path / "study.json")
    if "recorder" not in study and is_behind(path):
        tables, now = read_state(study, path)
        return Results(path, {**study, **now}, **tables)
    reports, schedule = (read_table(path / f"{name}.parquet", name) for name in ("reports", "schedule"))
    if "recorder" in study:
        return Results(path, study, reports, schedule, best_so_far(reports))
    return Results(path, study, reports, schedule, read_table(path / "incumbent.parquet", "incumbent"))


def _read_study(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"not a study directory: {path.parent} (it has no study.json)")
    try:
        study = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; restore it from a copy") from error
    if not isinstance(study, dict) or "schema_version" not in study:
        raise ValueError(f"{path} describes no study: it has no schema_version")
    if study["schema_version"] != STUDY_SCHEMA_VERSION:
        advice = "use the version of tune_stn that wrote it, or run the study again"
        raise ValueError(f"{path} has schema version {study['schema_version']}, not {STUDY_SCHEMA_VERSION}; {advice}")
    for key, kind in _STUDY_KEYS.items():
        if not isinstance(study.get(key), kind):
            raise ValueError(f"{path} is damaged: its {key!r} is no {kind.__name__}; restore it from a copy")
    return study


def export_results(results: Results, out: str | Path, format: str) -> list[Path]:
    """Write the three tables and study.json to the directory `out`, which is made where it is missing.

    Args:
        results: what `load_results` gave.
        out: a directory; files of these names in it are replaced.
        format: `parquet` (types, schema and version kept) or `csv` (full precision, NaN and null empty).

    Returns:
        The paths written.

    Raises:
        ValueError: another format.
        OSError: `out` cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"export format {format!r} is not one of {', '.join(FORMATS)}")
    reports = results.reports
    names = list(reports.columns)
    schemas = {
        "reports": reports_schema(metric_names(names), hp_names(names), choice_names(names)),
        "schedule": SCHEDULE,
        "incumbent": INCUMBENT,
    }
    directory = Path(out)
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas.items():
            path, frame = directory / f"{name}.{format}", getattr(results, name)
            if format == "parquet":
                write_table(frame, schema, path)
            else:
                with whole_file(path) as temporary:
                    frame.to_csv(temporary, index=False)
            written.append(path)
        with whole_file(directory / "study.json") as temporary:
            temporary.write_text(json.dumps(results.study, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write to {directory}: {error.strerror or error}") from error
    return [*written, directory / "study.json"]
