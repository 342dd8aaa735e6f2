"""Forked workers: they are what a new Python process would be, and there are some whatever becomes of the server."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.fork_server import CLIENT, MODULES, READY, fork_server, is_possible

pytestmark = [
    pytest.mark.skipif(not is_possible(), reason="only Linux forks a process that has torch loaded"),
    pytest.mark.slow,
]

SCRIPT = """
import json, os, random, sys, threading
import mine  # beside this script
loaded, with_ray = "torch" in sys.modules, "ray.tune" in sys.modules
import numpy, ray, torch, beside
print(json.dumps({
    "pid": os.getpid(), "group": os.getpgid(0), "arguments": sys.argv, "folder": os.getcwd(), "name": __name__,
    "variable": os.environ.get("MINE"), "other": os.environ.get("JE_ARROW_MALLOC_CONF"), "loaded": loaded,
    "threads": threading.active_count(), "id": ray.UniqueID.from_random().hex(), "ray": with_ray,
    "draws": [random.random(), float(numpy.random.rand()), float(torch.rand(()))],
}))
print("to stderr", file=sys.stderr)
sys.stdout.flush()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """With a module beside it, and one in a folder that only PYTHONPATH names."""
    for folder in ("scripts", "path", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scripts" / "mine.py").touch()
    (tmp_path / "path" / "beside.py").touch()
    path = tmp_path / "scripts" / "worker.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def command() -> Iterator[list[str]]:
    with fork_server() as python:
        yield shlex.split(python)


def run(command: list[str], script: Path, *arguments: str, **variables: str) -> tuple[Any, str]:
    """What the script says, and what it writes to standard error; its end is that of its output."""
    there = script.parent.parent
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(there / "path"), **variables}
    done = subprocess.run(
        [*command, str(script), *arguments],
        cwd=there / "here",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_fork_is_what_a_new_process_would_be(command: list[str], script: Path) -> None:
    found, errors = run(command, script, "a", "--b=c d", MINE="mine")
    assert found["arguments"] == [str(script), "a", "--b=c d"]
    assert found["folder"] == str(script.parent.parent / "here")
    assert found["name"] == "__main__"
    assert found["variable"] == "mine"
    assert found["other"] is None  # the server's own
    assert found["loaded"]
    assert found["ray"]
    assert found["threads"] == 1
    assert found["group"] == found["pid"]
    assert errors == "to stderr\n"


def test_a_worker_of_other_settings_than_the_first_loads_ray_itself(script: Path) -> None:
    script.write_text("import json, os, sys; print(json.dumps([os.environ['RAY_MINE'], 'ray' in sys.modules]))")
    with fork_server() as python:
        found = [run(shlex.split(python), script, RAY_MINE=mine)[0] for mine in ("1", "1", "2", "1")]
    assert found == [["1", True], ["1", True], ["2", False], ["1", True]]


def test_forks_draw_different_numbers(command: list[str], script: Path) -> None:
    (first, _), (second, _) = (run(command, script) for _ in range(2))
    assert first["pid"] != second["pid"]
    assert first["id"] != second["id"]
    assert all(one != other for one, other in zip(first["draws"], second["draws"], strict=True))


def test_without_a_server_the_script_is_run_all_the_same(script: Path) -> None:
    """It is gone with its folder; or it dies at its imports, when requests wait for it already."""
    with fork_server() as python:
        pass
    found, _ = run(shlex.split(python), script, "a", MINE="mine")
    assert (found["arguments"], found["variable"], found["loaded"]) == ([str(script), "a"], "mine", False)


def test_a_server_that_dies_at_its_imports_leaves_no_request_waiting(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pandas.py").write_text("import time; time.sleep(1); raise ImportError('broken')")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    with fork_server() as python:
        found, _ = run(shlex.split(python), script)
    assert not found["loaded"]


def test_the_server_and_its_forks_end_with_a_parent_that_is_killed(script: Path, tmp_path: Path) -> None:
    """And so do Ray's agents that log in its session's folder, which are no children of either; nobody else does."""
    session = tmp_path / "session"
    session.mkdir()
    code = (
        "import shlex, subprocess, sys, time\n"
        "from tune_stn.tuning.fork_server import CLIENT, READY, fork_server\n"
        "with fork_server(sys.argv[2]) as python:\n"
        "    subprocess.run([*shlex.split(python), sys.argv[1]])\n"
        "    time.sleep(60)"
    )
    script.write_text("import os, time\nprint(os.getpid(), os.getppid(), flush=True)\ntime.sleep(30)")
    command = [sys.executable, "-c", code, str(script), str(session)]
    with ExitStack() as stack:
        agent, elsewhere, reader = (
            stack.enter_context(logging(name, folder))
            for name, folder in (("ray::Agent", session), ("ray::Agent", tmp_path), ("tail", session))
        )
        parent = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert parent.stdout is not None
        worker, server = map(int, parent.stdout.readline().split())
        try:
            assert is_alive(server)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            until = time.monotonic() + 10
            while is_alive(server) or is_alive(worker) or agent.poll() is None:
                assert time.monotonic() < until, "they are still there"
                time.sleep(0.01)
            assert elsewhere.poll() is None
            assert reader.poll() is None
        finally:
            for pid in filter(is_alive, (worker, server)):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def logging(name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a name that has a file open in a folder."""
    with (folder / "log").open("a") as log:
        process = subprocess.Popen([name, "60"], executable=shutil.which("sleep"), stdout=log, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.ray
def test_a_worker_looks_for_no_garbage_in_what_it_was_forked_with(cluster: Cluster) -> None:
    """It would copy the memory of its parent, which takes a tenth of a second."""

    def looked_at() -> dict[str, Any]:
        import gc
        import sys

        def tells_of(module: str) -> bool:
            return any(one is vars(sys.modules[module]) for one in gc.get_objects())

        gc.enable()
        return {"frozen": gc.get_freeze_count(), "loaded": {name: tells_of(name) for name in modules}}

    modules = ("__main__", "ray", *MODULES)
    found = ray.get(ray.remote(num_cpus=0)(looked_at).remote())
    assert found["frozen"] > 100_000
    assert found["loaded"] == {"__main__": True, "ray": False, **dict.fromkeys(MODULES, False)}


@pytest.mark.parametrize("heard", [True, False])
def test_a_script_is_run_once_at_most(heard: bool, script: Path, tmp_path: Path) -> None:
    """By whoever hears of it: what the server may have forked, the client does not run, too."""
    script.write_text("print('run')")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        command = [sys.executable, "-I", "-S", str(CLIENT), str(tmp_path / "socket"), str(script)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as client:
            connection, _ = listener.accept()
            with connection:
                if heard:
                    connection.sendall(READY)  # and then the server is lost
            assert client.communicate(timeout=60)[0] == ("" if heard else "run\n")
