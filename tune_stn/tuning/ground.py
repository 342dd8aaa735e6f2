"""What a study stands on, its disk and its Ray: what is said when that is gone, and how this is noticed.

Needs no Ray: the command line uses it before Ray is loaded.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

RESUME = "resume=True goes on from there"
# What a disk says that cannot be written to, and what is to be done then.
DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "lift the limit on the size of files",
    errno.EROFS: "make it writable",
    errno.EIO: "mend the disk",
    errno.ESTALE: "mount it again",
}
LOOK_EVERY_S = 1.0  # at Ray's servers
KNOCK_S = 5.0  # for one to accept a connection, and as long to say a word
PATIENCE_S = 25.0  # with one that does not; Ray itself ends the process after 60, without advice, or waits for ever
# What a look may take, of which no more counts: the rest of it, this process was stopped, and its machine perhaps, too.
LONGEST_LOOK_S = 12.0
# How a client of HTTP/2, which gRPC is over, begins: 24 bytes, and settings. Whoever listens there says something, be
# it that it wants TLS. A process that is stopped says nothing, though the system accepts connections for it.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
LEAVE_S, TRIES = 5.0, 3  # for the main thread to come back from what it waits for, and how often it is told
END_S, END_LOST_S = 45.0, 10.0  # for Ray to end, which takes seconds, and where a loss is known: all within a minute
LOST_SIGNAL = signal.SIGUSR2

Servers = Mapping[str, tuple[str, int]]
"""What a person calls a server -> its host and port."""


class GroundLost(RuntimeError):
    """The disk or the Ray that a study needs is gone; what was done is kept, and the study can be resumed."""


@contextmanager
def naming_a_lost_disk(directory: Path) -> Iterator[None]:
    """Say in one line what would else be a traceback of Ray Tune's.

    Args:
        directory: Directory of the study.

    Raises:
        GroundLost: Something inside could not be written: its disk is full, read-only or broken.
    """
    try:
        yield
    except GroundLost:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code not in DISK:
            # Tune raises an error of its own, with the traceback of what a callback raised as its text.
            code = disk_error(str(error))
        if code is None:
            raise
        raise GroundLost(
            f"{os.strerror(code)} for {directory} or what Ray Tune keeps for it; what was done is kept: {DISK[code]}, "
            f"then {RESUME}"
        ) from error


def disk_error(text: str) -> int | None:
    """The code of an error of a disk that a text names; None if it names none."""
    return next((code for code in DISK if os.strerror(code) in text), None)


# Ray ----------------------------------------------------------------------------------------------------------------


@contextmanager
def standing_on(servers: Servers) -> Iterator[None]:
    """Have the block end when a server has not answered for `PATIENCE_S`: calls of Ray may wait for it for ever.

    It is dead then, or it hangs: a process that is stopped does not answer either. A loaded machine has it answer late.
    Time in which this process was stopped itself does not count, as of a machine that slept. A thread knocks at the
    servers, and raises an exception in the main thread by a signal; a block in another thread is
    not watched. Where the main thread does not leave the block, as it waits inside a call that no signal ends, the
    process is ended with exit code 1: Ray would do the same a little later.

    Raises:
        GroundLost: A server has not answered for so long, or does not when the block ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(servers)
    before = signal.signal(LOST_SIGNAL, watch.raise_lost)
    watch.thread.start()
    try:
        yield
    except GroundLost:
        raise
    except Exception as error:
        watch.end()
        watch.wait_for_answers(error)  # or it is only a consequence
        raise
    finally:
        watch.end()
        signal.signal(LOST_SIGNAL, before)
    watch.wait_for_answers(None)


class _Watch:
    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.silent_s = dict.fromkeys(servers, 0.0)
        self.looked = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(threading.get_ident(),), daemon=True)

    def end(self) -> None:
        """Nothing is raised any more."""
        self.over.set()
        self.thread.join()

    def _work(self, main: int) -> None:
        while not self.lost:
            if self.over.wait(LOOK_EVERY_S):
                return
            self.look()
        for _ in range(TRIES):  # what catches the exception may turn to Ray once more
            signal.pthread_kill(main, LOST_SIGNAL)
            if self.over.wait(LEAVE_S):
                return
        _end(self.words)

    def look(self) -> bool:
        """Whether all servers answer now."""
        answers = {name: _answers(place) for name, place in self.servers.items()}
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, LONGEST_LOOK_S), now
        for name, answer in answers.items():
            self.silent_s[name] = 0.0 if answer else self.silent_s[name] + passed
        return all(answers.values())

    @property
    def lost(self) -> list[str]:
        return [name for name, seconds in self.silent_s.items() if seconds >= PATIENCE_S]

    @property
    def words(self) -> str:
        return (
            f"{' and '.join(self.lost)} did not answer for {PATIENCE_S:g} s: killed, stopped, or not to be reached any "
            "more; "
            f"what was done is kept: {RESUME}"
        )

    def raise_lost(self, number: int, frame: FrameType | None) -> None:
        if not self.over.is_set():
            raise GroundLost(self.words)

    def wait_for_answers(self, error: Exception | None) -> None:
        while not self.look():
            if self.lost:
                raise GroundLost(self.words) from error
            time.sleep(LOOK_EVERY_S)


@contextmanager
def ended_when_late() -> Iterator[Callable[..., None]]:
    """Gives a function for `ExitStack.push`: from then on, the block has only so much time to end, less after a loss.

    Ray's own end waits for ever for a server that hangs. A process that is late is ended, with exit code 1.
    """
    timers: list[threading.Timer] = []

    def see(kind: object, error: BaseException | None, trace: object) -> None:
        lost = isinstance(error, GroundLost)
        seconds, late = END_LOST_S if lost else END_S, "Ray did not end: one of its servers hangs"
        words = str(error) if lost else f"{late}; what was done is kept: {RESUME}"
        timers.append(threading.Timer(seconds, _end, [words]))
        timers[-1].daemon = True
        timers[-1].start()

    try:
        yield see
    finally:
        for timer in timers:
            timer.cancel()


def _end(words: str) -> None:
    print(f"tune-stn: {words}".replace("resume=True", "--resume"), file=sys.stderr, flush=True)
    os._exit(1)


def _answers(place: tuple[str, int]) -> bool:
    try:
        connection = socket.create_connection(place, timeout=KNOCK_S)
    except OSError:
        return False
    with connection:
        try:
            connection.sendall(HELLO)
            connection.recv(1)
        except TimeoutError:
            return False
        except OSError:
            pass  # it hung up, so there is somebody
    return True


# SIGTERM ------------------------------------------------------------------------------------------------------------


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Inside the block, SIGTERM does what Ctrl-C does, unless the process has a handler of its own for it.

    Ray has handlers, one of Python and one of C, which would end the process: enter the block when Ray has begun.
    """
    before: Any = signal.getsignal(signal.SIGTERM)
    replaceable = str(getattr(before, "__module__", "")).partition(".")[0] in ("ray", "tune_stn")
    if threading.current_thread() is not threading.main_thread() or not (replaceable or before is signal.SIG_DFL):
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)  # Tune has one while it runs
    if not callable(handler):  # it is ignored, as a shell has its jobs in the background do
        raise KeyboardInterrupt
    handler(number, frame)
