"""What each run of a study was begun with, kept beside its journal: a study can go on without its `study.json`, and a
run that was copied from another study is known. Needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_stn.checked import COUNT, TEXT, parse_json, read_whole
from tune_stn.files import whole_file
from tune_stn.study.seal import DONE, digest
from tune_stn.tuning.recording.journal import REPORTS

BEGUN = "begun.json"
VERSION = 1
SHARED = ("task", "task_given", "budget", "trials", "settings", "slots_per_run")
"""Keys of `study.json` that all runs of a study have in common, and without which their results would differ."""


def begun_with(study: Mapping[str, Any], method: str, seed: int) -> dict[str, Any]:
    """What a run is begun with, as it is read from a file.

    Args:
        study: What `study.json` says.
        method: Name of the run's method.
        seed: Seed of the run.
    """
    own = {"method": method, "seed": seed, "method_settings": study["method_settings"].get(method, {})}
    found: dict[str, Any] = json.loads(json.dumps({**{key: study[key] for key in SHARED}, **own}))
    return found


def write_begun(folder: Path, begun: Mapping[str, Any]) -> None:
    """Write what a run is begun with into its state folder."""
    record = {**begun, "version": VERSION}
    with whole_file(folder / BEGUN) as path:
        path.write_text(json.dumps({**record, "digest": digest(record)}, indent=1))


def read_begun(folder: Path) -> dict[str, Any]:
    """What a run was begun with.

    Raises:
        ValueError: Its folder does not say, or in a file that is damaged or of another version; the message says which,
            and no advice.
    """
    try:
        record = parse_json(read_whole(folder / BEGUN), {"method": TEXT, "seed": COUNT})
    except FileNotFoundError:
        raise ValueError(f"{folder} does not say what it was begun with, as an earlier version wrote it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / BEGUN} is damaged ({error})") from None
    if record.pop("digest", None) != digest(record):
        raise ValueError(f"{folder / BEGUN} is damaged (its checksum does not match)")
    if (version := record.pop("version", None)) != VERSION:
        raise ValueError(f"{folder / BEGUN} is of version {version!r}, not {VERSION}")
    found: dict[str, Any] = record
    return found


def begun_runs(directory: Path) -> list[Path]:
    """State folders of the runs of a study that have something to lose."""
    return sorted({path.parent for name in (REPORTS, DONE) for path in directory.glob(f"state/*/{name}")})


def difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what a run was begun otherwise than it would be now, in words; empty where in nothing."""
    words = [f"{key} {begun.get(key)!r}, not {now[key]!r}" for key in now if begun.get(key) != now[key]]
    return words[0] if words else ""
