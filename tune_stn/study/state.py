"""The state folder of a run: its journal, its closing record, and what these say is missing. Needs no Ray."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tune_stn.checked import read_whole
from tune_stn.study.seal import has_unfit_files, read_done, rows_of_tables, why_unfit
from tune_stn.tuning.recording.journal import ERRORS, EVENT, FAILED, REPORTS, RESTARTED, read_lines

SPARE_FILE = ".spare"  # in the study's directory while it runs: room for the last words, should there be no other
CLOCK = ("startup_s", "wall_time_s", "device_time_s", "slots", "slots_in_use")  # of a closing record, see `run.execute`
NAME, MOST_NAME = "name.txt", 1000  # of a run for Ray Tune, and its bytes at most
UNFINISHED = "resume the study to go on"


def state_folder(directory: Path, method: str, seed: int) -> Path:
    """Where a study keeps the state of a run."""
    return directory / "state" / f"{method}-seed{seed}"


def clock_of(method: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The entry of a run that has ended in `clocks` of `study.json`; none of a run of an earlier version."""
    record = read_done(folder) or {}
    if not {*CLOCK} <= {*record}:
        return []
    return [{"method": method, "seed": seed, **{name: record[name] for name in CLOCK}}]


def has_result(folder: Path) -> bool:
    """Whether the journal of a run holds a finite validation loss, whether or not it fits the run's seal."""
    return any(EVENT not in line and math.isfinite(line["val_loss"]) for line in read_lines(folder / REPORTS))


def missing_of(method: str, seed: int, folder: Path, limit: float | None) -> dict[str, Any]:
    """The entry of a run in `missing` of `study.json`: why it is incomplete, and whether it has `no_result` or gave up.

    Empty where nothing is missing; `limit` is that of `why_incomplete`.
    """
    record, unfit = read_done(folder), why_unfit(folder)
    reason = _why_incomplete(folder, limit, record, unfit)
    if not reason:
        return {}
    entry = {"method": method, "seed": seed, "reason": reason}
    if unfit and record is None:
        return {**entry, "no_result": True, "damaged": True}
    if unfit:
        kept = rows_of_tables(folder.parents[1], method, seed, folder) is not None
        told = "its results here are those of the tables" if kept else "its results are left out"
        return {**entry, "reason": f"{reason} ({told})", "no_result": not kept, "damaged": True}
    return {**entry, "no_result": record is None or record["hopeless"] or not has_result(folder)}


def failures_of(method: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The trials of a run that failed for good, those that never reported included.

    The `file` with the whole traceback is named as in the study's directory, which may move; None where there is none.
    """
    record = read_done(folder) or {}
    told = {one["trial_id"]: one["reason"] for one in _lines(folder) if one.get(EVENT) == FAILED}
    files = {path.stem: path.relative_to(folder.parents[1]).as_posix() for path in (folder / ERRORS).glob("*.txt")}
    return [
        {"method": method, "seed": seed, "trial_id": trial, "reason": reason, "file": files.get(trial)}
        for trial, reason in {**record.get("failures", {}), **told}.items()
    ]


def restarts_of(method: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The failures of a run's trials after which they were started again; keys are those of `failures_of`, and the
    `epoch` that was the last to be reported before."""
    top = folder.relative_to(folder.parents[1])
    return [
        {"method": method, "seed": seed, **{name: line[name] for name in ("trial_id", "reason", "epoch")}}
        | {"file": (top / line["file"]).as_posix() if line["file"] is not None else None}
        for line in _lines(folder)
        if line.get(EVENT) == RESTARTED
    ]


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The journal of a run; nothing of one that does not fit the run's seal, and may say anything."""
    return iter(()) if has_unfit_files(folder) else read_lines(folder / REPORTS)


def known_name(folder: Path) -> str:
    """The name of a run that has begun; empty for one that has not. Raises ValueError if its file is damaged."""
    try:
        name = read_whole(folder / NAME, most=MOST_NAME).decode()
    except FileNotFoundError:
        return "run" if (folder / "tune" / "run").is_dir() else ""  # of an earlier version
    except (OSError, ValueError):
        name = ".."
    if not name.isprintable() or name == ".." or Path(name).name != name:  # it would lead elsewhere
        raise ValueError(f"{folder / NAME} is damaged; remove {folder}, and its run begins anew")
    return name


def foreign_path(directory: Path, storage: Path | None = None) -> Path | None:
    """What of a study belongs to another user, of all that Ray Tune may unpickle to resume it; None if nothing does.

    Args:
        directory: Directory of the study.
        storage: The folder in which Ray Tune keeps its state, where that is another one on this machine.
    """
    if not hasattr(os, "geteuid"):  # Windows
        return None
    names = [known_name(path.parent) for path in directory.glob(f"state/*/{NAME}")] if storage is not None else []
    experiments = [*directory.glob("state/*/tune/*"), *(storage / name for name in names if storage is not None)]
    found = [directory, *(directory / name for name in ("study.json", "state")), *directory.glob("state/*")]
    for path in (*found, *(path for one in experiments for path in (one, *one.glob("*")))):
        if path.exists() and path.stat().st_uid != os.geteuid():
            return path
    return None


def why_incomplete(folder: Path, limit: float | None = None) -> str:
    """Why the results of a run are not all there; empty where they are.

    Args:
        folder: State folder of the run.
        limit: The `cost_total` that ends the run; None where the number of its trials does.
    """
    return _why_incomplete(folder, limit, read_done(folder), why_unfit(folder))


def _why_incomplete(folder: Path, limit: float | None, record: dict[str, Any] | None, unfit: str) -> str:
    if record is None:
        return "; ".join(filter(None, [unfit, _why_unfinished(folder, limit)]))
    if unfit:
        return f"its files do not fit its seal: {unfit}; resume the study to run it again"
    failures, reasons = record["failures"], list(record["failures"].values())
    if record["hopeless"]:
        return f"given up: one trial after the other failed, the last with: {reasons[-1]}"
    if not has_result(folder):
        return f"no result: {_why_none(folder, reasons)}"
    if failures:
        first = next(iter(failures.items()))
        return f"{len(failures)} of its trials failed, the first ({first[0]}) with: {first[1]}"
    return ""


def _why_unfinished(folder: Path, limit: float | None) -> str:
    lines = list(read_lines(folder / REPORTS))
    if not lines:
        return f"not begun; {UNFINISHED}"
    spent = max((line["cost_total"] for line in lines if EVENT not in line), default=0.0)
    of = f" of {round(limit, 1):g}" if limit is not None and spent <= limit < math.inf else ""
    failed = {line["trial_id"]: line["reason"] for line in lines if line.get(EVENT) == FAILED}
    words = f", {len(failed)} of its trials failed, the first with: {next(iter(failed.values()))}" if failed else ""
    return f"not finished: cost {spent:.1f}{of} so far{words}; {UNFINISHED}"


def _why_none(folder: Path, failures: list[str]) -> str:
    diverged = [line["reason"] for line in read_lines(folder / REPORTS) if line.get("status") == "diverged"]
    words = []
    if failures:
        words.append(f"{len(failures)} of its trials failed, the first with: {failures[0]}")
    if diverged:
        words.append(f"{len(diverged)} of its trials diverged, the first with: {diverged[0]}")
    return "; ".join(words) or "no trial reported a finite validation loss"
