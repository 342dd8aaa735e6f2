"""Locks: one holder at a time, none after its death, none needed where the file system has none."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tune_stn.cli import main
from tune_stn.study import locks
from tune_stn.study.locks import Locked, only_study, only_writer

HOLDER = f"process {os.getpid()} on {socket.gethostname()}"


def test_a_second_study_in_a_directory_is_refused_by_the_name_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and exit code 2; the first one's lock and everything else stays as it is."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    command = ["compare", "--task", "ridge", "--methods", "fixed", "--budget", "2", "--seeds", "1", "--out", "out"]
    with only_study(Path("out")):
        done = CliRunner().invoke(main, [*command, "--no-rehearsal"], catch_exceptions=False)
        assert [path.name for path in Path("out").iterdir()] == [".lock"]
    assert done.exit_code == 2
    assert done.stderr == (f"tune-stn: --out out: a study is running there ({HOLDER}); wait for its end, or stop it\n")
    assert list(Path("out").iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tune_stn.study.locks import only_study\n"
        "with only_study(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=rf"\(process {process.pid} on "), only_study(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with only_study(tmp_path):
        assert (tmp_path / ".lock").read_text().splitlines()[0] == HOLDER


def test_a_run_waits_for_the_process_that_is_about_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOOK_EVERY_S", 0.01)
    folder, order, first = tmp_path / "state" / "stn-seed0", [], only_writer(tmp_path / "state" / "stn-seed0")

    def wait() -> None:
        with only_writer(folder):
            order.append("second")

    second = threading.Thread(target=wait)
    with first:
        second.start()
        second.join(0.1)
        assert second.is_alive()
        order.append("first")
    second.join(10)
    assert order == ["first", "second"]
    assert list((tmp_path / "state").iterdir()) == []


def test_a_run_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    folder = tmp_path / "state" / "stn-seed0"
    with only_writer(folder):
        with (
            pytest.raises(Locked, match=rf"stn-seed0 is still written to \({HOLDER}\); stop it, then resume"),
            only_writer(folder),
        ):
            pass
        with only_writer(folder.with_name("stn-seed1")):  # of another run
            pass


# Network file systems -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems are."""

    def flock(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks.fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_a_file_system_without_locks_has_one_study_at_a_time_too(tmp_path: Path) -> None:
    with only_study(tmp_path):
        with pytest.raises(Locked, match=rf"a study is running there \({HOLDER}\)"), only_study(tmp_path):
            pass
        assert (tmp_path / ".lock").read_text().startswith(HOLDER)
    with only_study(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def held_before(directory: Path, *, process: int, host: str, boot: str, age_s: float) -> None:
    """The file that a holder has left, or still touches."""
    path = directory / ".lock"
    path.write_text(f"process {process} on {host}\n{boot}\n0\n")
    os.utime(path, (time.time() - age_s,) * 2)


MINE, DEAD = 0, 2**22 + 1  # more than Linux counts processes


@pytest.mark.parametrize(
    ("process", "host", "boot", "age_s", "with_locks", "alive"),
    [
        # On another machine, of whose locks this one does not know.
        (1, "elsewhere", "other", 1, True, True),
        (1, "elsewhere", "other", 1, False, True),
        (1, "elsewhere", "other", locks.DEAD_S + 5, True, False),
        (1, "elsewhere", "other", locks.DEAD_S + 5, False, False),
        # In a container on this machine, and here: the lock is gone with its process.
        (MINE, "elsewhere", "now", 1, True, False),
        (MINE, "here", "now", 1, True, False),
        # The same without locks: whether there is such a process, and whether it is the one.
        (MINE, "here", "now", 1, False, True),
        (MINE, "here", "now", locks.DEAD_S + 5, False, False),
        (DEAD, "here", "now", 1, False, False),
        # Before this machine was started again.
        (MINE, "here", "earlier", 1, True, False),
        (MINE, "here", "earlier", 1, False, False),
    ],
)
def test_who_counts_as_alive(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: int,
    host: str,
    boot: str,
    age_s: float,
    with_locks: bool,
    alive: bool,
) -> None:
    # Not in the parameters, for two processes that run tests are to give them one name.
    process = process or os.getpid()
    host, boot = {"here": socket.gethostname()}.get(host, host), {"now": locks._boot()}.get(boot, boot)
    if not with_locks:

        def flock(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "")

        monkeypatch.setattr(locks.fcntl, "flock", flock)
    held_before(tmp_path, process=process, host=host, boot=boot, age_s=age_s)
    if not alive:
        with only_study(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(HOLDER)
        return
    words = rf"\(process {process} on {host}\); wait for its end, or stop it"
    words += r"; if that machine is dead, try again in 4[34] s$" if host == "elsewhere" else "$"
    with pytest.raises(Locked, match=words), only_study(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text().startswith(f"process {process} on {host}")  # it keeps its lock
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_who_slept_for_too_long_leaves_the_lock_to_its_new_holder(tmp_path: Path) -> None:
    with only_study(tmp_path):
        held_before(tmp_path, process=1, host="elsewhere", boot="other", age_s=0)
    assert (tmp_path / ".lock").read_text().startswith("process 1 on elsewhere")


def test_a_holder_says_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    with only_study(tmp_path):
        lock = tmp_path / ".lock"
        os.utime(lock, (0, 0))
        until = time.monotonic() + 10
        while lock.stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(Locked, match=r"\.lock cannot be written to .*; remove it"), only_study(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_lock_that_its_holder_has_just_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it: a lock on a file that nobody finds would keep nobody out."""
    flock, calls = locks.fcntl.flock, []

    def removed_before(descriptor: int, how: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", removed_before)
    with only_study(tmp_path):
        assert len(calls) == 2
        with pytest.raises(Locked), only_study(tmp_path):
            pass


def test_on_a_disk_that_is_read_only_by_now_the_error_of_the_study_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, **_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(KeyError), only_study(tmp_path):
        raise KeyError
    with only_study(tmp_path):  # the lock is free, though its file is there
        pass
