"""A run's journal on the driver's disk: a file of JSON lines, of which a crash costs at most the one being written.

A line is a report of a trial, or an event: a trial failed and was restarted, failed for good, finished, or went on from
another one's checkpoint. The first two have the `reason`, the last `lines` of the traceback, the `epoch` that was the
last to be reported before, and the `file` with the whole traceback, as seen from the journal's folder (or None).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_stn.checked import COUNT, NOTHING, NUMBER, TEXT, Kind, mismatch, open_regular, parse_json
from tune_stn.files import whole_file
from tune_stn.training.tables import ALLOWED, CHOICE

REPORTS = "reports.jsonl"
EVENT = "@event"  # the key that tells an event from a report; no trial reports a number by such a name
ERRORS = "errors"  # the folder of tracebacks beside the journal
# In reports, and in no table: the seconds that the trial took for it, and from the start of Tune to its first trial.
TOOK, STARTUP = "@took_s", "@startup_s"
VERSION, JOURNAL_VERSION = "@version", 1  # in the first line; earlier journals have none
FAILED, RESTARTED, FINISHED, COPIED = "failed", "restarted", "finished", "copied"


_MOST_BYTES = 2**26  # of a line, which has a thousand or so
_KNOWN = Kind("an event that is known", lambda event: event in _SHAPES)
_FAILURE = {"trial_id": TEXT, "reason": TEXT, "epoch?": COUNT, "lines?": [TEXT], "file?": (TEXT, NOTHING)}
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "": {
        **{"trial_id": TEXT, "epoch": COUNT, "val_loss": NUMBER, "segment?": TEXT, "parent_trial_id?": TEXT},
        **{"status?": Kind("the status of a trial", lambda status: status in ALLOWED["status"]), "reason?": TEXT},
        **{"step?": COUNT, "cost?": NUMBER, "cost_total?": NUMBER, "wall_time_s?": NUMBER, "device_time_s?": NUMBER},
        "*": NUMBER,
    },
    FAILED: _FAILURE,
    RESTARTED: {**_FAILURE, "epoch": COUNT, "file": (TEXT, NOTHING)},
    FINISHED: {"trial_id": TEXT},
    COPIED: {
        **{"trial_id": TEXT, "segment": TEXT, "parent_trial_id": TEXT, "epoch": COUNT, "step": COUNT},
        **{"values": {"*": NUMBER}, "sources": {"*": Kind("a source", lambda one: one in ALLOWED["source"])}},
    },
}


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, which is on the disk when this returns; where it cannot be written whole, nothing of it is.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        data = json.dumps(line if end else {**line, VERSION: JOURNAL_VERSION}).encode() + b"\n"
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def replace(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the file anew, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w") as file:
        for number, line in enumerate(lines):
            file.write(json.dumps(line if number else {**line, VERSION: JOURNAL_VERSION}) + "\n")


def cut_torn_end(path: Path) -> None:
    """Cut off a last line that a crash left unfinished, which was never counted, so that the next one starts clean."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, in order; none if there is no file. An unfinished last line is passed over.

    Raises:
        ValueError: a line before the last is damaged, or the file is of another version; the message names it.
    """
    try:
        opened = open_regular(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete its folder to run it again") from None
    with opened as file:
        for number, data in enumerate(iter(lambda: file.readline(_MOST_BYTES), b""), start=1):
            if len(data) == _MOST_BYTES:
                raise ValueError(
                    f"{path}, line {number} is damaged (it is too long); delete its folder to run it again"
                )
            if not data.endswith(b"\n"):
                return
            try:
                line = parse_json(data, {EVENT + "?": TEXT})
                words = {name: TEXT for name in line if name.startswith(CHOICE)}
                if problem := mismatch(line, {**_SHAPES.get(line.get(EVENT, ""), {EVENT: _KNOWN}), **words}):
                    raise ValueError(problem)
            except ValueError as error:
                advice = "delete its folder to run it again"
                raise ValueError(f"{path}, line {number} is damaged ({error}); {advice}") from None
            if (version := line.pop(VERSION, JOURNAL_VERSION)) != JOURNAL_VERSION:
                advice = "use the version of tune_stn that wrote it"
                raise ValueError(f"{path} is of version {version!r}, not {JOURNAL_VERSION}; {advice}")
            yield line


def read_reports(path: Path) -> list[dict[str, Any]]:
    """The reports among the lines; raises as `read_lines` does."""
    return [line for line in read_lines(path) if EVENT not in line]
