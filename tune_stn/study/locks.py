"""Who may write: one study at a time in a directory, one process at a time in the state folder of a run.

After `kill -9` of a study the processes of its runs live on for a moment, and would write beside those of a study that
resumes it. Locks are the operating system's: they end with their process, however that ends.

Not every network file system has them, and some know only those of their own machine. So a holder also writes who it is
into the file, and touches it every few seconds: a holder on another machine counts as alive while it does. On the same
machine (the same boot of a kernel, so also in another container) the lock says all, where there are any.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STUDY_LOCK = ".lock"
LOOK_EVERY_S = 0.2
BEAT_S = 5.0
DEAD_S = 45.0  # without a beat, a holder on another machine is dead
WAIT_S = 60.0  # for the process of a run whose study was killed to end


class Locked(ValueError):
    """Another process has the lock, or another user's file is in its place."""


@contextmanager
def only_study(directory: Path) -> Iterator[None]:
    """Inside the block, no other study runs in a directory.

    Raises:
        Locked: One does; the message says which process, on which machine.
    """
    with _locked(directory / STUDY_LOCK, f"out={directory}: a study is running there", "wait for its end, or stop it"):
        yield


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside the block, no other process executes the run with this state folder; waits for one that is about to end.

    Raises:
        Locked: One does, and has not ended within `WAIT_S`; the message says which, on which machine.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")  # beside it, for a run that begins anew removes the folder
    with _locked(path, f"{folder} is still written to", "stop it, then resume the study", wait_s=WAIT_S):
        yield


@contextmanager
def _locked(path: Path, what: str, advice: str, *, wait_s: float = 0.0) -> Iterator[None]:
    until = time.monotonic() + wait_s
    while (descriptor := _take(path)) is None:
        if time.monotonic() >= until:
            raise Locked(f"{what} ({_holder(path)}); {advice}{_when_dead(path)}")
        time.sleep(LOOK_EVERY_S)
    over, mine = threading.Event(), _content(descriptor)
    beats = threading.Thread(target=_beat, args=(descriptor, mine, over), daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        with suppress(OSError):  # of a disk that is read-only by now, say; the lock is what counts
            if _content(descriptor) == mine:
                path.unlink(missing_ok=True)
        os.close(descriptor)


def _beat(descriptor: int, mine: bytes, over: threading.Event) -> None:
    """Say that its holder is alive, as long as it is the holder: one that slept for long may be so no more."""
    while not over.wait(BEAT_S):
        with suppress(OSError):  # a full disk is no reason to end a study from here
            if _content(descriptor) == mine:
                os.utime(descriptor)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, 4096, 0)


def _take(path: Path) -> int | None:
    """The open file, if this process is its only holder now; None if another one is."""
    while True:
        # The directory may be somebody else's: a link there must not lead to a file that is written to.
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP):
                raise
            raise Locked(f"{path} cannot be written to ({error.strerror}); remove it if no study is running") from None
        has_locks = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            has_locks = False
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its last holder has removed it in between
    try:
        mine = f"process {os.getpid()} on {socket.gethostname()}\n{_boot()}\n{secrets.token_hex(8)}\n".encode()
        taken = not _is_alive(path, has_locks)
        if taken:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, mine, 0)
        if taken and not has_locks:  # two may have come to this at once: the later one has written over the earlier
            time.sleep(LOOK_EVERY_S)
            taken = _content(descriptor) == mine
    except OSError:
        os.close(descriptor)
        raise
    if not taken:
        os.close(descriptor)
        return None
    return descriptor


def _is_alive(path: Path, has_locks: bool) -> bool:
    """Whether the holder that the file names is at work, although there is no lock of its that this machine sees."""
    process, host, boot = _named(path)
    if not host:
        return False
    here, same_boot = host == socket.gethostname(), boot == _boot()
    if has_locks and (here or same_boot):
        return False
    return _age_s(path) < DEAD_S and (not same_boot or _is_running(process)) and (same_boot or not here)


def _named(path: Path) -> tuple[int, str, str]:
    """Process, machine and boot of a holder; (0, "", "") where the file names none."""
    lines = path.read_text(errors="replace").splitlines()
    found = re.fullmatch(r"process (\d+) on (.+)", lines[0]) if lines else None
    return (int(found[1]), found[2], lines[1] if len(lines) > 1 else "") if found else (0, "", "")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _age_s(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system, for those of two machines may differ."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def _boot() -> str:
    """What names this boot of this machine's kernel; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return "a process that has ended by now"
    return lines[0] if lines else "a process that does not say its name"


def _when_dead(path: Path) -> str:
    """What to do if a holder on another machine is dead, of which this one cannot know."""
    try:
        _, host, boot = _named(path)
        left = DEAD_S - _age_s(path)
    except OSError:
        return ""
    if not host or host == socket.gethostname() or boot == _boot() or left <= 0:
        return ""
    return f"; if that machine is dead, try again in {left:.0f} s"
