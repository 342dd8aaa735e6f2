"""From a run's journal to its rows of the tables `reports` and `schedule`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow.fs import FileType

from tune_stn.training.schedule_buffer import SCHEDULE_FILE, TRIAL, UNTIL
from tune_stn.training.tables import SCHEDULE_SCHEMA, hp_names, read_parquet
from tune_stn.tuning.recording.journal import COPIED, EVENT, FAILED, FINISHED, RESTARTED, read_lines

_ROWS_AT_A_TIME = 10_000  # held as dictionaries, which take ten times the memory of columns
_REPORT = ["trial_id", "segment", "epoch"]  # what names a report
_PLACE = ["cost", "cost_total", "wall_time_s", "device_time_s"]  # when it was first made, and what had been spent then
_NEEDED = ("segment", *_PLACE, "step", "status")
_SCHEDULE = SCHEDULE_SCHEMA.names[SCHEDULE_SCHEMA.names.index("trial_id") :]
_OWN = [name for name in _SCHEDULE if name not in ("trial_id", "parent_trial_id")]  # of a trial's own schedule


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a journal holds.

    Attributes:
        reports: A row for each report in the order of their making, with the keys of its line as columns. A repetition
            (of the work since the checkpoint from which a failed trial went on) stands in place of the first.
        failures: Trial -> why it failed for good.
        finished: Trials that ended, of those that do not say so themselves.
        copies: (trial, segment) -> the event of its copy of another trial.
        integers: Hyperparameters of which all values are integers. Default none.
    """

    reports: pd.DataFrame
    failures: Mapping[str, str]
    finished: frozenset[str]
    copies: Mapping[tuple[str, str], Mapping[str, Any]]
    integers: frozenset[str] = frozenset()


def read_recorded(path: Path) -> Recorded:
    """Read a journal; empty if there is none. Raises ValueError as `journal.read_lines` does."""
    events: dict[str, list[dict[str, Any]]] = {FAILED: [], RESTARTED: [], FINISHED: [], COPIED: []}
    frames, rows = [pd.DataFrame(columns=[*_REPORT, *_PLACE, "step", "status", "parent_trial_id"])], []
    kinds: dict[str, set[type]] = {}
    for line in read_lines(path):
        if EVENT in line:
            events[line[EVENT]].append(line)
            continue
        if absent := [name for name in _NEEDED if name not in line]:
            raise ValueError(f"{path} is damaged (a report of trial {line['trial_id']} has no {absent[0]!r})")
        rows.append({name: value for name, value in line.items() if not name.startswith("@")})
        for name in hp_names(line):
            kinds.setdefault(name, set()).add(type(line[f"hp/{name}"]))
        if len(rows) == _ROWS_AT_A_TIME:
            frames.append(pd.DataFrame(rows))
            rows = []
    frames.append(pd.DataFrame(rows))
    reports = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    return Recorded(
        reports=_without_repetitions(reports),
        failures={event["trial_id"]: event["reason"] for event in events[FAILED]},
        finished=frozenset(event["trial_id"] for event in events[FINISHED]),
        copies={(event["trial_id"], event["segment"]): event for event in events[COPIED]},
        integers=frozenset(name for name, found in kinds.items() if found == {int}),
    )


def _without_repetitions(reports: pd.DataFrame) -> pd.DataFrame:
    if not reports.duplicated(_REPORT).any():
        return reports
    first = reports.drop_duplicates(_REPORT)[[*_REPORT, *_PLACE]]
    last = reports.drop_duplicates(_REPORT, keep="last").drop(columns=_PLACE)
    return first.merge(last, on=_REPORT, validate="one_to_one")[reports.columns]


def report_rows(recorded: Recorded, *, over: bool) -> pd.DataFrame:
    """The reports, numbered by trial, the last of each saying how the trial ended; other columns as they are.

    Args:
        recorded: Journal of the run.
        over: Whether the run has ended, and so its trials: those that did not end by themselves were stopped.
    """
    reports = recorded.reports
    by_trial = reports.groupby("trial_id", sort=False)
    last = ~reports["trial_id"].duplicated(keep="last") & (reports["status"] == "running")
    ended = np.select(
        [reports["trial_id"].isin(list(recorded.failures)), reports["trial_id"].isin(list(recorded.finished))],
        ["failed", "finished"],
        "stopped" if over else "running",
    )
    return reports.assign(report_index=by_trial.cumcount(), status=reports["status"].where(~last, ended))


def schedule_rows(recorded: Recorded, own: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row for each hyperparameter where a trial begins, where it goes on from another one's checkpoint, and where
    its value changed in between (`stn` where it has a scale and so tunes itself, else `replay`).

    A report closes its epoch. Constants held from the beginning of it; what a trial tunes itself is as at its end.

    Args:
        recorded: Journal of the run.
        own: Finer schedules, kept by the trials themselves (`read_own_schedules`), which replace these rows up to the
            step `until`. Default None.

    Returns:
        The columns of the table `schedule` but for those that name the run; with `own`, trial by trial in the order of
        their first reports.
    """
    reports = recorded.reports
    hps = hp_names(reports.columns)
    needed = ["trial_id", "segment", "epoch", "step", *(f"hp/{hp}" for hp in hps)]
    before = reports[needed].groupby("trial_id", sort=False).shift()
    begins = before["epoch"].isna() | (reports["segment"] != before["segment"])
    held_from = _held_from(reports, before, begins, recorded.copies)
    parts = [pd.DataFrame(columns=_SCHEDULE)]
    for hp in hps:
        values = reports[f"hp/{hp}"]
        scale = reports[f"scale/{hp}"] if f"scale/{hp}" in reports else pd.Series(0.0, reports.index)
        chosen = values.notna() & (begins | (values != before[f"hp/{hp}"]))
        rows, tuned = held_from[chosen], scale[chosen] > 0
        sources = [one.get(hp, "explore") if one is not None else "fixed" for one in rows["sources"]]
        constant = np.where(begins[chosen], sources, "replay")
        part = rows.assign(hp=hp, value=values, raw=np.nan, scale=scale[chosen].where(tuned))
        part["source"] = np.where(tuned, "stn", constant)
        part["step"] = part["step"].where(~tuned, reports["step"])
        # As in a trial's own schedule, what changed on the way has the epoch of the step before it.
        part["epoch"] = part["epoch"].where(~tuned, reports["epoch"]) - (tuned | (part["source"] == "replay"))
        parts.append(part[_SCHEDULE])
    rows = pd.concat([part for part in parts if len(part)] or parts).sort_index(kind="stable")
    if own is None or own.empty:
        return rows.reset_index(drop=True)
    reached = rows["trial_id"].map(own.groupby("trial_id")["until"].first())
    own = _with_parents(own, recorded.copies)
    later = rows[reached.isna() | (rows["step"] > reached)]
    table = pd.concat([own, later]) if len(later) else own
    # Not in Tune's order of trials, which is another one after the run has been restored.
    order = {trial_id: number for number, trial_id in enumerate(reports["trial_id"].unique())}
    return table.sort_values("trial_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True)


def _with_parents(own: pd.DataFrame, copies: Mapping[tuple[str, str], Mapping[str, Any]]) -> pd.DataFrame:
    """A trial's own schedule says that it took over another one's state (`exploit`), but not whose: the copies do."""
    taken_over = (own["source"] == "exploit") & (own["hp"] == own.groupby("trial_id")["hp"].transform("first"))
    own = own.assign(copy=taken_over.groupby(own["trial_id"]).cumsum())
    parents = pd.DataFrame(list(copies.values()), columns=["trial_id", "parent_trial_id"])
    parents["copy"] = parents.groupby("trial_id").cumcount() + 1
    merged: pd.DataFrame = own.merge(parents, on=["trial_id", "copy"], how="left")[_SCHEDULE]
    return merged


def _held_from(
    reports: pd.DataFrame, before: pd.DataFrame, begins: pd.Series, copies: Mapping[tuple[str, str], Mapping[str, Any]]
) -> pd.DataFrame:
    """For each report: epoch and step from which its constants hold and, after a copy, the parent and the sources."""
    held = reports[["trial_id"]].assign(parent_trial_id=None, sources=None)
    held["epoch"], held["step"] = before["epoch"].fillna(0), before["step"].fillna(0)
    names = zip(reports.index[begins], reports["trial_id"][begins], reports["segment"][begins], strict=True)
    for index, trial_id, segment in names:
        if (copy := copies.get((trial_id, segment))) is not None:
            held.at[index, "sources"] = copy["sources"]
            for column in ("parent_trial_id", "epoch", "step"):
                held.at[index, column] = copy[column]
    return held.astype({"epoch": int, "step": int})


def read_own_schedules(trials: Iterable[Any], *, advice: str | None = None) -> pd.DataFrame:
    """The schedules in the newest checkpoints of trials that keep one there: self-tuning ones, and replays.

    Only that file is read, from wherever the run's storage is. Left out is what the reports know better: constants,
    which a population method changes, and a schedule part of which is that of a trial whose checkpoint Tune copied.
    The column `until` is the step at which the checkpoint was made.

    Args:
        trials: The trials, as Tune has them.
        advice: What to do about a file that cannot be read, where all are this package's own. Default None: it may be
            another one of that name, and is passed over.

    Raises:
        ValueError: With `advice`, a file is damaged. The reports know less, and a run that follows would differ.
    """
    parts = [pd.DataFrame(columns=["trial_id", *_OWN, "until"])]
    for trial in trials:
        if trial.checkpoint is None:
            continue
        path, filesystem = f"{trial.checkpoint.path}/{SCHEDULE_FILE}", trial.checkpoint.filesystem
        if filesystem.get_file_info(path).type == FileType.File:
            try:
                with filesystem.open_input_file(path) as file:
                    table = read_parquet(file)
            except ValueError as error:
                if advice is not None:
                    where = f"the schedule in the checkpoint of trial {trial.trial_id}"
                    raise ValueError(f"{where} is damaged ({error}); {advice}") from None
                continue  # some file of theirs, or damaged: the reports say what they know
            metadata = table.schema.metadata or {}
            if not len(table) or not {*_OWN} <= set(table.column_names):
                continue
            part = table.to_pandas().assign(trial_id=trial.trial_id)
            part["until"] = int(metadata.get(UNTIL, part["step"].max()))
            own = metadata.get(TRIAL, trial.trial_id.encode()) == trial.trial_id.encode()
            if own and part["source"].iloc[0] != "fixed":
                parts.append(part)
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
