"""Checkpoint files: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tune_stn.files import whole_file

FORMAT = 6
STATE_FILE = "state.pt"  # in the folder of a checkpoint
# A SHA-256 of all bytes before it ends the file: torch checks none, and reads a flipped bit as a weight.
_END_BYTES = 22  # what ends the list of a zip's entries
DIGEST_BYTES = hashlib.sha256().digest_size


_UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, TypeError, AttributeError),
    *(KeyError, IndexError, OSError, MemoryError, OverflowError),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong."""


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, replacing it only when everything is on disk."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(content.getbuffer())
        file.write(hashlib.sha256(content.getbuffer()).digest())


def load_state(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than tensors and plain values, or is of another
            format.
    """
    try:
        with path.open("rb") as file:
            _check_zip(file)
            content = file.read()
        if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
            raise ValueError("its checksum does not match")
        state = torch.load(io.BytesIO(content[:-DIGEST_BYTES]), map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except _UNREADABLE as error:
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint of ours: {_first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} is not of format {FORMAT}: written by another version or program")
    return state


def _check_zip(file: BinaryIO) -> None:
    """Refuse what `torch.save` did not write before any memory is taken for it: it ends a zip by a list of its entries,
    none of them compressed. Raises ValueError or BadZipFile; leaves the file at its beginning.
    """
    size = file.seek(0, os.SEEK_END) - DIGEST_BYTES
    file.seek(max(size - _END_BYTES, 0))
    if size < _END_BYTES or not file.read(_END_BYTES).startswith(b"PK\x05\x06"):
        raise ValueError("it does not end as one")
    with zipfile.ZipFile(file) as entries:  # finds the end of the list although the digest follows it
        if sum(entry.file_size for entry in entries.infolist()) > size:
            raise ValueError("it would unpack to more than it has")
    file.seek(0)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def taken_over(state: Mapping[str, Any], own: Mapping[str, Any], *, spent_flops: int, branch: str) -> dict[str, Any]:
    """The state of another run as one's own: what was learned is the other's, what was spent and recorded one's own.

    Args:
        state: The state of the other run.
        own: The state of this run until now.
        spent_flops: What this run has spent, in operations.
        branch: The name of the random streams from now on; no other run from the same state has it.
    """
    return {
        **state,
        "schedule": own["schedule"],
        "device_time_s": own["device_time_s"],
        "cost": {**state["cost"], "spent_flops": spent_flops},
        "branch": branch,
        "last_good": None,  # it names records of the other schedule
    }
