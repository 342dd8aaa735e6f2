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

from tune_stn.training.tables import whole_file

REPORTS = "reports.jsonl"
EVENT = "@event"  # the key that tells an event from a report; no trial reports a number by such a name
ERRORS = "errors"  # the folder of tracebacks beside the journal
FAILED, RESTARTED, FINISHED, COPIED = "failed", "restarted", "finished", "copied"


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, which is on the disk when this returns; where it cannot be written whole, nothing of it is.

    Raises:
        OSError: it cannot be written.
    """
    data = json.dumps(line).encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def replace(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the file anew, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def cut_torn_end(path: Path) -> None:
    """Cut off a last line that a crash left unfinished, which was never counted, so that the next one starts clean."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, in order; none if there is no file. An unfinished last line is passed over.

    Raises:
        ValueError: a line before the last is damaged; the message names file and line.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, data in enumerate(file, start=1):
            if not data.endswith(b"\n"):
                return
            try:
                line = json.loads(data.decode())
                line["trial_id"], line[EVENT] if EVENT in line else line["epoch"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                advice = "delete its folder to run it again"
                raise ValueError(f"{path}, line {number} is damaged ({error}); {advice}") from None
            yield line


def read_reports(path: Path) -> list[dict[str, Any]]:
    """The reports among the lines; raises as `read_lines` does."""
    return [line for line in read_lines(path) if EVENT not in line]
