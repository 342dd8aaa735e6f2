"""Locks: one holder at a time, none after its death, none needed where the file system has none."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tune_stn.cli import main
from tune_stn.study import locks
from tune_stn.study.locks import Held, only_study, only_writer

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
        with pytest.raises(Held, match=rf"\(process {process.pid} on "), only_study(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with only_study(tmp_path):
        assert (tmp_path / ".lock").read_text() == HOLDER


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
            pytest.raises(Held, match=rf"stn-seed0 is still written to \({HOLDER}\); stop it, then resume"),
            only_writer(folder),
        ):
            pass
        with only_writer(folder.with_name("stn-seed1")):  # of another run
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with only_study(tmp_path), only_study(tmp_path):
        pass


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(Held, match=r"\.lock cannot be written to .*; remove it"), only_study(tmp_path):
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
        with pytest.raises(Held), only_study(tmp_path):
            pass
