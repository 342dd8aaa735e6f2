"""Who may write: one study at a time in a directory, one process at a time in the state folder of a run.

After `kill -9` of a study the processes of its runs live on for a moment, and would write beside those of a study that
resumes it. Locks are the operating system's: they end with their process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STUDY_LOCK = ".lock"
LOOK_EVERY_S = 0.2
WAIT_S = 60.0  # for the process of a run whose study was killed to end


class Held(ValueError):
    """Another process has the lock, or another user's file is in its place."""


@contextmanager
def only_study(directory: Path) -> Iterator[None]:
    """Inside the block, no other study runs in a directory.

    Raises:
        Held: One does; the message says which process, on which machine.
    """
    with _held(directory / STUDY_LOCK, f"out={directory}: a study is running there", "wait for its end, or stop it"):
        yield


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside the block, no other process executes the run with this state folder; waits for one that is about to end.

    Raises:
        Held: One does, and has not ended within `WAIT_S`; the message says which, on which machine.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")  # beside it, for a run that begins anew removes the folder
    with _held(path, f"{folder} is still written to", "stop it, then resume the study", wait_s=WAIT_S):
        yield


@contextmanager
def _held(path: Path, what: str, advice: str, *, wait_s: float = 0.0) -> Iterator[None]:
    until = time.monotonic() + wait_s
    while (descriptor := _take(path)) is None:
        if time.monotonic() >= until:
            raise Held(f"{what} ({_holder(path)}); {advice}")
        time.sleep(LOOK_EVERY_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """The open file if it is locked now, or this file system knows no locks; None if another process has the lock."""
    while True:
        # The directory may be somebody else's: a link there must not lead to a file that is written to.
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP):
                raise
            raise Held(f"{path} cannot be written to ({error.strerror}); remove it if no study is running") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            pass  # some network file systems have none: rather without a lock than not at all
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its last holder has removed it in between
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "a process that does not say its name"
    except OSError:
        return "a process that has ended by now"
