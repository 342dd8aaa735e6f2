"""A study's directory as data frames, and its export."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune_stn.checked import COUNT, FINITE, FLAG, NOTHING, NUMBER, TEXT, Shape, mismatch, read_json
from tune_stn.files import whole_file
from tune_stn.study.collect import is_behind, is_damaged, not_sealed, read_state
from tune_stn.study.controls import control_shares
from tune_stn.study.importance import importance
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.state import CLOCK
from tune_stn.study.trained import Best, best_of
from tune_stn.training.tables import (
    INCUMBENT_SCHEMA,
    SCHEDULE_SCHEMA,
    STUDY_SCHEMA_VERSION,
    choice_names,
    hp_names,
    metric_names,
    read_table,
    reports_schema,
    without_formulas,
    write_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADVICE = (
    "restore it from a copy, or have it written anew by `tune-stn compare ... --resume`, with the arguments that the "
    "study was begun with"
)
FORMATS = ("parquet", "csv", "tensorboard")
MANY = 5  # seeds, and missing runs, that are named one by one
_OF_RUN = {"method": TEXT, "seed": COUNT}
_OF_TRIAL = {**_OF_RUN, "trial_id": TEXT, "reason": TEXT, "file": (TEXT, NOTHING)}
STUDY: Shape = {
    **{"task": TEXT, "methods": [TEXT], "seeds": [COUNT], "budget?": (FINITE, NOTHING)},
    "missing": [{**_OF_RUN, "reason": TEXT, "no_result?": FLAG}],
    **{"failures?": ([_OF_TRIAL], {"*": TEXT}), "restarts?": [{**_OF_TRIAL, "epoch": COUNT}]},
    "clocks?": [{**_OF_RUN, **dict.fromkeys(CLOCK, (NUMBER, NOTHING))}],
    **{"metrics?": [TEXT], "hyperparameters?": [TEXT], "remarks?": [TEXT], "settings?": {}, "recorder?": {}},
    **{"versions?": {}, "machine?": {}, "method_settings?": {}, "peak_memory_mib?": {"*": NUMBER}},
    "conversion?": {"*": {}},
}
"""Of `study.json`, as far as it is read."""


@dataclass(frozen=True, eq=False)
class Results:
    """What a study found.

    Attributes:
        path: The study's directory.
        study: `study.json`: task, methods, seeds, budget, settings, versions, machine, missing runs.
        reports: One row per report of a trial.
        schedule: One row per change of a hyperparameter.
        incumbent: Best-so-far, one row per improvement.
    """

    path: Path
    study: dict[str, Any]
    reports: pd.DataFrame
    schedule: pd.DataFrame
    incumbent: pd.DataFrame

    def __repr__(self) -> str:
        """A paragraph: what was compared, the best of each method, and what is missing."""
        return " ".join(self._sentences())

    def _repr_html_(self) -> str:
        """The same and the summary, for a notebook; all names and texts in it are escaped."""
        from tune_stn.study.summary import summary_cells

        table = pd.DataFrame(summary_cells(self.summary())).to_html(index=False, border=0)
        return f"<p>{'<br>'.join(map(html.escape, self._sentences()))}</p>\n{table}"

    def _sentences(self) -> list[str]:
        study, table = self.study, self.summary()
        budget = f", budget {study['budget']:g} plain-epoch equivalents a run" if study.get("budget") else ""
        seeds = _counted("seed", study["seeds"])
        found = {row["method"]: row for row in table.to_dict("records")}
        of_each = [
            f"{name} {'none' if isnan(row['best_val_loss']) else format(row['best_val_loss'], '.4g')}"
            + (f" ({row['missing']} missing)" if row["missing"] else "")
            for name, row in found.items()
        ]
        sentences = [
            f"{study['task']}: {', '.join(study['methods'])} at {seeds}{budget}, in {self.path}.",
            f"Mean best validation loss: {', '.join(of_each)}.",
        ]
        for entry in study["missing"][:MANY]:
            reason = " ".join(str(entry["reason"]).split())
            sentences.append(f"Incomplete: {entry['method']}, seed {entry['seed']}: {reason}.")
        if len(study["missing"]) > MANY:
            sentences.append(f"Incomplete, too: {len(study['missing']) - MANY} more runs.")
        return sentences

    def summary(self) -> pd.DataFrame:
        """One row per method: what it found, what it cost, what went wrong; see `study.summary.summary`."""
        from tune_stn.study.summary import summary

        return summary(self)

    def plot(self, kind: str = "incumbent") -> Figure:
        """A picture of the study, which a notebook shows, and `savefig` writes to a file.

        Args:
            kind: "incumbent", the best validation loss so far against cost; "incumbent-seconds", against wall clock;
                "schedule", each hyperparameter over training steps; "final-values", those that each run found best.

        Raises:
            ValueError: There is no such kind, or the study holds several tasks.
        """
        from tune_stn.study.plots import PLOTS

        if kind not in PLOTS:
            raise ValueError(f"kind={kind!r} is not one of {', '.join(PLOTS)}")
        return PLOTS[kind](self)

    @property
    def controls(self) -> pd.DataFrame:
        """How much of the gain of `auto` over the start values each of its controls has: see `control_shares`."""
        return control_shares(self.incumbent)

    @cached_property
    def importance(self) -> pd.DataFrame:
        """Which hyperparameters mattered, and when, by what the study recorded: see `study.importance.importance`."""
        return importance(self)

    def best(self, method: str | None = None, seed: int | None = None) -> Best:
        """The best epoch, by validation loss: trial, hyperparameters, metrics and checkpoint.

        Args:
            method: The name of one; default None for all.
            seed: One of the seeds; default None for all.

        Raises:
            ValueError: There is no finite validation loss of it.
        """
        return best_of(self, method, seed)


def _counted(name: str, values: Sequence[object]) -> str:
    """Seed 0; seeds 0, 1; seeds 0, 1, ..., 9."""
    shown = [str(value) for value in values]
    if len(shown) > MANY:
        shown = [*shown[:2], "...", shown[-1]]
    return f"{name}{'' if len(values) == 1 else 's'} {', '.join(shown)}"


def load_results(directory: str | Path) -> Results:
    """Read a study that `tune-stn compare` wrote, or a run that a `Recorder` wrote, whose best-so-far is computed here.

    Of a study that is still running, or was killed, everything that its runs have reported so far is there, and
    `study["missing"]` says what is not. The files of finished runs are checked against their seals: of a run whose
    files do not fit, `missing` says so, and its rows are those that the tables hold of it, if they are all there, or
    none. `study["not_sealed"]` names runs that an earlier version finished, which cannot be checked.

    Raises:
        NotADirectoryError: `directory` is none.
        FileNotFoundError: it holds no study, or a table is missing.
        ValueError: a file is damaged or of another schema version.
    """
    path = Path(directory)
    if not path.is_dir():
        raise NotADirectoryError(f"not a directory: {path}")
    study = _read_study(path / "study.json")
    if "recorder" not in study:
        study.pop("not_sealed", None)  # as it was when the study ended
        if unknown := not_sealed(study, path):
            study["not_sealed"] = unknown
        if is_behind(path) or is_damaged(study, path):
            tables, now = read_state(study, path)
            return Results(path, {**study, **now}, **tables)
    reports, schedule = (read_table(path / f"{name}.parquet", name) for name in ("reports", "schedule"))
    if "recorder" in study:
        return Results(path, study, reports, schedule, best_so_far(reports))
    return Results(path, study, reports, schedule, read_table(path / "incumbent.parquet", "incumbent"))


def _read_study(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"not a study directory: {path.parent} (it has no study.json)")
    study: dict[str, Any] = read_json(path, {}, advice=ADVICE)
    if "schema_version" not in study:
        raise ValueError(f"{path} describes no study: it has no schema_version")
    if study["schema_version"] != STUDY_SCHEMA_VERSION:
        advice = "use the version of tune_stn that wrote it, or run the study again"
        raise ValueError(f"{path} has schema version {study['schema_version']}, not {STUDY_SCHEMA_VERSION}; {advice}")
    if problem := mismatch(study, STUDY):
        raise ValueError(f"{path} is damaged ({problem}); {ADVICE}")
    return study


def export_results(results: Results, out: str | Path, format: str) -> list[Path]:
    """Write the three tables and study.json to the directory `out`, which is made where it is missing.

    Args:
        results: The study, as `load_results` gives it.
        out: A directory; files of these names in it are replaced.
        format: `parquet` (types, schema and version kept), `csv` (full precision, NaN and null empty; a text that would
            be a formula comes after an apostrophe), or `tensorboard` (see `study.tensorboard`: a
            folder for each trial, no tables).

    Returns:
        The paths written; of `tensorboard`, the directory.

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
        "schedule": SCHEDULE_SCHEMA,
        "incumbent": INCUMBENT_SCHEMA,
    }
    directory = Path(out)
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if format == "tensorboard":
            from tune_stn.study.tensorboard import export_tensorboard

            export_tensorboard(results, directory)
            return [directory]
        for name, schema in schemas.items():
            path, frame = directory / f"{name}.{format}", getattr(results, name)
            if format == "parquet":
                write_table(frame, schema, path)
            else:
                with whole_file(path) as temporary:
                    without_formulas(frame).to_csv(temporary, index=False)
            written.append(path)
        with whole_file(directory / "study.json") as temporary:
            temporary.write_text(json.dumps(results.study, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write to {directory}: {error.strerror or error}") from error
    return [*written, directory / "study.json"]
