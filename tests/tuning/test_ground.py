"""What is said when a study loses its disk or its Ray, and that it is noticed; SIGTERM is Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tune_stn.tuning import ground
from tune_stn.tuning.ground import GroundLost, naming_a_lost_disk, standing_on, terminated_like_interrupted


def os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code), "x")


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (os_error(errno.ENOSPC), "No space left on device for {}"),
        (os_error(errno.EDQUOT), "Disk quota exceeded for {}"),
        (os_error(errno.EROFS), "Read-only file system for {}"),
        (os_error(errno.EFBIG), "File too large for {}"),
        (os_error(errno.EIO), "Input/output error for {}"),
        # As Tune raises what a callback raised.
        (RuntimeError("Traceback ...\nOSError: [Errno 28] No space left on device: 'x'"), "No space left on device"),
        (RuntimeError("Traceback ...\nOSError: [Errno 30] Read-only file system: 'x'"), "Read-only file system"),
        (os_error(errno.EACCES), None),
        (RuntimeError("something else"), None),
        (GroundLost("said already"), None),
    ],
)
def test_a_lost_disk_is_named(tmp_path: Path, raised: Exception, words: str | None) -> None:
    with pytest.raises(GroundLost if words else type(raised)) as caught, naming_a_lost_disk(tmp_path):
        raise raised
    assert (caught.value is raised) == (words is None)
    if words:
        assert words.format(tmp_path) in str(caught.value)
        assert str(caught.value).endswith("then resume=True goes on from there")
        assert "\n" not in str(caught.value)


# Ray ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setattr(ground, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(ground, "PATIENCE_S", 0.3)
    monkeypatch.setattr(ground, "KNOCK_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener


def serve(listener: socket.socket) -> None:
    """Say something to everybody, until it is closed."""
    with suppress(OSError):
        while True:
            with listener.accept()[0] as connection:
                assert connection.recv(1)
                connection.sendall(b"x")


def lose(server: socket.socket, then: Callable[[], None]) -> None:
    with standing_on({"the head": server.getsockname()}):
        server.shutdown(socket.SHUT_RDWR)  # closed while it is waited for, it would take one more
        server.close()
        then()


def wait() -> None:
    time.sleep(60)


def test_a_block_ends_when_a_server_has_not_answered_for_some_time(server: socket.socket) -> None:
    """Though it waits inside a call."""
    before, began = signal.getsignal(ground.LOST_SIGNAL), time.monotonic()
    with pytest.raises(
        GroundLost, match=r"the head did not answer for 0\.3 s: killed, stopped, or .* kept: resume=True"
    ):
        lose(server, wait)
    assert 0.2 < time.monotonic() - began < 30
    assert signal.getsignal(ground.LOST_SIGNAL) is before


def test_what_catches_the_exception_is_told_again(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground, "LEAVE_S", 0.3)
    caught = []

    def catch() -> None:
        try:
            wait()
        except GroundLost as error:
            caught.append(error)
            wait()

    with pytest.raises(GroundLost):
        lose(server, catch)
    assert len(caught) == 1


def test_a_consequence_is_said_by_its_cause_and_another_error_is_not(server: socket.socket) -> None:
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError), standing_on({"the head": server.getsockname()}):
        fail()
    with pytest.raises(GroundLost) as caught:
        lose(server, fail)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_block_that_ends_by_itself_after_a_loss_says_so(server: socket.socket) -> None:
    with pytest.raises(GroundLost):
        lose(server, lambda: None)


def test_while_servers_answer_nothing_happens(server: socket.socket) -> None:
    with standing_on({"the head": server.getsockname(), "a raylet": server.getsockname()}):
        time.sleep(0.5)


def test_a_server_that_accepts_and_says_nothing_is_lost(server: socket.socket) -> None:
    """As one that is stopped: its system accepts for it."""
    words = r"the raylet did not answer for 0\.3 s: killed, stopped, or"
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(GroundLost, match=words):
        wait_on({"the head": server.getsockname(), "the raylet": silent.getsockname()})


def wait_on(servers: ground.Servers) -> None:
    with standing_on(servers):
        wait()


def test_a_server_that_hangs_up_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that wants TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        assert ground._answers(listener.getsockname())


def test_time_in_which_the_watch_itself_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that slept for a night, or a process group that a shell stopped: the first look finds nobody yet."""
    now = [0.0]
    monkeypatch.setattr(ground.time, "monotonic", lambda: now[0])
    watch = ground._Watch({"the head": ("127.0.0.1", 1)})
    for passed in (ground.LOOK_EVERY_S, 8 * 3600.0, ground.LOOK_EVERY_S):
        now[0] += passed
        assert not watch.look()
        assert not watch.lost
    while not watch.lost:
        now[0] += ground.LOOK_EVERY_S
        watch.look()
    assert now[0] - 8 * 3600 == pytest.approx(ground.PATIENCE_S - ground.LONGEST_LOOK_S, abs=1.5)


STUCK = """
import ctypes, time
from tune_stn.tuning import ground
ground.LOOK_EVERY_S, ground.PATIENCE_S, ground.LEAVE_S = .02, .2, .2
until = time.time() + 60
end = ctypes.CDLL(None).poll
with ground.standing_on({"the head": ("127.0.0.1", 1)}):
    sum(map(end, [None] * 9, [0] * 9, [9000] * 9))  # in C all the time: no handler of Python's runs in between
"""


def test_a_process_that_waits_where_no_exception_reaches_it_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("tune-stn: the head did not answer for 0.2 s")


LATE = """
import sys, time
from contextlib import ExitStack
from tune_stn.tuning import ground
ground.END_S, ground.END_LOST_S = .5, .2
with ExitStack() as stack:
    see = stack.enter_context(ground.ended_when_late())
    stack.callback(time.sleep, float(sys.argv[1]))  # as Ray's end does
    stack.push(see)
    if sys.argv[2:]:
        raise ground.GroundLost("lost: resume=True goes on")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "first"),
    [
        (["60", "lost"], 1, "tune-stn: lost: --resume goes on"),
        (["0", "lost"], 1, "Traceback"),
        (["60"], 1, "tune-stn: Ray did not end: one of its servers hangs; what was done is kept: --resume"),
        (["0"], 0, ""),
    ],
)
def test_a_block_that_is_not_left_in_time_is_ended(arguments: list[str], code: int, first: str) -> None:
    command = [sys.executable, "-c", LATE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == code
    assert done.stderr.startswith(first)


def test_a_lost_ray_ends_a_study_within_a_minute() -> None:
    noticed = ground.PATIENCE_S + ground.LOOK_EVERY_S + ground.KNOCK_S
    assert noticed + ground.TRIES * ground.LEAVE_S + ground.END_LOST_S < 60


# SIGTERM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_sigint", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_ctrl_c_inside_the_block(of_sigint: Any) -> None:
    """Where Ctrl-C is ignored, too, as by a job that a shell has put into the background."""

    def terminate() -> None:
        with terminated_like_interrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            wait()

    before, of_before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, of_sigint)
    try:
        with pytest.raises(KeyboardInterrupt):
            terminate()
    finally:
        signal.signal(signal.SIGINT, of_before)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_the_users_own_stays() -> None:
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with terminated_like_interrupted():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]
