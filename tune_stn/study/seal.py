"""The seal of a finished run: its closing record says what the files beside it hold, and what of them no longer fits.

It protects against damage and mishaps. Whoever can write to the folder can write a seal that fits, too: what Ray Tune
would unpickle has a seal of another kind, see `tuning.signature`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tune_stn.checked import parse_json, read_whole
from tune_stn.files import whole_file
from tune_stn.training.tables import read_table
from tune_stn.tuning.recording.journal import REPORTS

SCHEDULE, DONE = "schedule.parquet", "done.json"
RECORD_VERSION = 1
SEALED = (REPORTS, SCHEDULE)
_KEYS: dict[str, type | tuple[type, ...]] = {
    "trials": int,
    "cost_total": (int, float),
    "failures": dict,
    "hopeless": bool,
}


def write_done(folder: Path, record: Mapping[str, Any], *, reports: int, schedule: int) -> dict[str, Any]:
    """Write the closing record of a run whose journal and schedule are written, and seal them by it; gives all of it.

    Args:
        folder: State folder of the run.
        record: What `run.execute` gives.
        reports: The rows that the run has in the study's table `reports`.
        schedule: The rows of its schedule.
    """
    sealed: dict[str, Any] = {
        **record,
        "version": RECORD_VERSION,
        "rows": {"reports": reports, "schedule": schedule},
        "files": {name: _fingerprint(folder / name) for name in SEALED},
    }
    sealed["digest"] = digest(sealed)
    with whole_file(folder / DONE) as path:
        path.write_text(json.dumps(sealed, indent=1))
    return sealed


def read_done(folder: Path) -> dict[str, Any] | None:
    """The closing record of a run; None where it has not ended, or the record is damaged, see `why_unfit`.

    Raises:
        ValueError: It is of another version.
    """
    record = _read(folder / DONE)
    return record if isinstance(record, dict) else None


def why_unfit(folder: Path) -> str:
    """What of a finished run's files does not fit its closing record; empty where all does, or none is sealed."""
    path = folder / DONE
    record = _read(path)
    if record is None:
        return ""
    wrong = record if isinstance(record, str) else _what_is_wrong(folder, record)
    # A study that goes on with the run removes the record first: then nothing is wrong.
    return wrong if wrong and _read(path) == record else ""


def has_unfit_files(folder: Path) -> bool:
    """Whether a run has ended, by a record that is whole, and its files do not fit that."""
    return read_done(folder) is not None and bool(why_unfit(folder))


def is_sealed(folder: Path) -> bool:
    """Whether the files of a finished run can be checked: those of earlier versions cannot."""
    return "files" in (read_done(folder) or {"files": ()})


def rows_of_tables(directory: Path, method: str, seed: int, folder: Path) -> dict[str, pd.DataFrame] | None:
    """The rows that a study's tables hold of a finished run, by table; None unless they are all there.

    Args:
        directory: Directory of the study.
        method: Name of the run's method.
        seed: Seed of the run.
        folder: State folder of the run.
    """
    record = read_done(folder)
    if record is None or "rows" not in record:
        return None
    try:
        tables = {name: read_table(directory / f"{name}.parquet", name) for name in record["rows"]}
    except (FileNotFoundError, ValueError):
        return None
    found = {name: table[(table["method"] == method) & (table["seed"] == seed)] for name, table in tables.items()}
    return found if all(len(found[name]) == count for name, count in record["rows"].items()) else None


def _read(path: Path) -> dict[str, Any] | str | None:
    """The record, or what is wrong with it; None where there is none."""
    try:
        record = parse_json(read_whole(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return f"{path.name} is damaged"
    if not isinstance(record, dict):
        return f"{path.name} is damaged"
    if (version := record.get("version", RECORD_VERSION)) != RECORD_VERSION and _is_whole(record):
        advice = "use the version of tune_stn that wrote it"
        raise ValueError(f"{path} is of version {version!r}, not {RECORD_VERSION}; {advice}")
    known = all(isinstance(record.get(key), kind) for key, kind in _KEYS.items())
    return record if known and ("files" not in record or _is_whole(record)) else f"{path.name} is damaged"


def _is_whole(record: Mapping[str, Any]) -> bool:
    return record.get("digest") == digest({key: value for key, value in record.items() if key != "digest"})


def digest(record: Mapping[str, Any]) -> str:
    """Of what a record holds, in whatever order."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    data = path.read_bytes() if path.is_file() else b""  # no trial has reported
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "lines": data.count(b"\n")}


def _what_is_wrong(folder: Path, record: Mapping[str, Any]) -> str:
    wrong = []
    for name, sealed in record.get("files", {}).items():
        found = _fingerprint(folder / name)
        if found == sealed:
            continue
        if not (folder / name).exists():
            wrong.append(f"{name} is missing")
        elif name == REPORTS and found["lines"] != sealed["lines"]:
            wrong.append(f"{name} has {found['lines']} of {sealed['lines']} rows")
        elif found["bytes"] != sealed["bytes"]:
            wrong.append(f"{name} has {found['bytes']} of {sealed['bytes']} bytes")
        else:
            wrong.append(f"{name} has other content than was written")
    return ", ".join(wrong)
