"""Ray workers that start with their imports done: they are forked from a process that has torch and the rest loaded.

A Ray worker is a new Python process, in which importing torch and this package takes over two CPU seconds. A study
starts one for each trial or two, so on a laptop most of its time would go there. With Ray's documented option
`py_executable`, Ray starts `fork_client.py` instead of Python: a small script that hands its arguments, environment and
open files to the server here and ends, while a fork of the server goes on as the worker. Ray reads its settings from
the environment when it is imported: so the server imports it for the first worker, in that one's environment, and a
worker of other settings gets a Python of its own. So does each where the server has threads, which a fork would lose.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import random
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).with_name("fork_client.py")
# What a trial imports, before and after Ray is; of Ray's own needs those that take long, where they are installed.
MODULES = (
    "tune_stn.tasks.registry",
    "tune_stn.training.trainer",
    "pandas",
    "pyarrow.fs",
    "pyarrow.parquet",
)
NEEDS_OF_RAY = (
    "filelock",
    "fsspec",
    "google.protobuf.json_format",
    "jsonschema",
    "msgpack",
    "psutil",
    "pydantic.dataclasses",
    "requests",
    "rich.live",
    "yaml",
)
MODULES_OF_RAY = ("ray.tune", "tune_stn.tuning.trainable")
LONGEST_REQUEST = 1 << 20  # bytes
READY = b"1"
ENDING_S = 2.0  # for what Ray has started, when the process that it was for is gone
PR_SET_PDEATHSIG = 1  # of the kernel: see prctl(2)
# Arrow's allocator would start a thread; torch takes the number of threads that each trial gives it.
ENVIRONMENT = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OMP_NUM_THREADS": "1"}


def is_possible() -> bool:
    """Whether this machine can fork a process that has torch loaded: on Linux."""
    return sys.platform == "linux"


@contextmanager
def fork_server(session: str = "") -> Iterator[str]:
    """A server inside the block; gives the command to start Python by: Ray's `py_executable`.

    It answers as soon as its imports are done, and until then requests wait. It ends with this process, however that
    ends, and so does what it has forked: a run whose study was killed would else go on for seconds.

    Args:
        session: A folder that no other Ray keeps a session in. Where this process ends inside the block, as killed,
            processes of Ray's that log there end, too: Ray's agents would wait for its servers for up to a minute.
            Default none.
    """
    with tempfile.TemporaryDirectory(prefix="tune_stn-") as folder:  # for this user alone
        path = Path(folder) / "socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1024)
        code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tune_stn.tuning import fork_server as f; "
        server = subprocess.Popen(
            [sys.executable, "-c", f"{code}f.serve({listener.fileno()}, {session!r})", json.dumps(sys.path)],
            stdin=subprocess.PIPE,  # its end is that of this process
            stdout=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT},
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the study
        )
        listener.close()
        try:
            yield shlex.join([sys.executable, "-I", "-S", str(CLIENT), str(path)])
        finally:
            server.kill()
            server.communicate()


def serve(descriptor: int, session: str = "") -> None:
    """Do the imports, then fork a process for each request, until standard input ends; only forks return.

    Args:
        descriptor: File descriptor of a listening Unix socket.
        session: Folder of the sessions of the Ray to end with this process; see `fork_server`. Default none.
    """
    for name in MODULES:
        importlib.import_module(name)
    for name in NEEDS_OF_RAY:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    listener = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    server = os.getpid()
    settings: Mapping[str, str] | None = None
    sound = False
    while _is_wanted(listener):
        request, descriptors = _receive(listener)
        if request:
            if settings is None:
                settings, sound = _load_ray(request["environment"]), _forks_differ()
            alone = len(os.listdir("/proc/self/task")) == 1  # a fork would lose other threads
            if _fork() == 0:
                listener.close()
                _end_with(server)
                _become(request, descriptors, loaded=sound and alone and settings == _settings(request["environment"]))
                return
        for one in descriptors:
            os.close(one)
    if session:
        _end_session(session)
    os._exit(0)  # at once, for the forks end with it


def _end_session(folder: str) -> None:
    """End the processes of Ray's that log in a folder, some of which may still be about to begin."""
    folder, until = os.path.realpath(folder), time.monotonic() + ENDING_S
    while time.monotonic() < until:
        for process in Path("/proc").glob("[0-9]*"):
            if _is_of_session(process, folder):
                with suppress(OSError):
                    os.kill(int(process.name), signal.SIGKILL)
        time.sleep(ENDING_S / 4)


def _is_of_session(process: Path, folder: str) -> bool:
    """Whether a process, of those in /proc, is Ray's by its name, and by what it has open keeps its log in a folder."""
    try:
        of_ray = process.joinpath("cmdline").read_bytes().partition(b"\0")[0]
        files = os.listdir(process / "fd") if of_ray.startswith(b"ray::") or b"/ray/" in of_ray else []
        return any(os.readlink(process / "fd" / file).startswith(f"{folder}/") for file in files)
    except OSError:  # it has ended, or is somebody else's
        return False


def _load_ray(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Import Ray in the environment of a worker; gives the settings that it has read.

    What is loaded stays: a fork that looked for garbage in it would copy all of its memory, over a tenth of a second.
    """
    os.environ.clear()
    os.environ.update(environment)
    with _without_draws():
        for name in MODULES_OF_RAY:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    return _settings(environment)


@contextmanager
def _without_draws() -> Iterator[None]:
    """Inside the block, actor classes have ids from the system's random numbers, not from Ray's.

    Ray seeds its generator at the first draw. Past that, each fork would go on with the same numbers, and workers give
    one id to two things.
    """
    actor: Any = importlib.import_module("ray.actor")
    own = actor.ActorClassID

    class OfSystem(own):  # type: ignore[misc, valid-type]
        @classmethod
        def from_random(cls) -> Any:
            return own(os.urandom(own.size()))

    actor.ActorClassID = OfSystem
    try:
        yield
    finally:
        actor.ActorClassID = own


def _forks_differ() -> bool:
    """Whether Ray draws different ids in two forks of this process."""
    import ray

    drawn = []
    for _ in range(2):
        readable, writable = os.pipe()
        if _fork() == 0:
            os.write(writable, ray.UniqueID.from_random().binary())
            os._exit(0)
        os.close(writable)
        drawn.append(os.read(readable, ray.UniqueID.size()))
        os.close(readable)
    return drawn[0] != drawn[1]


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Those that Ray reads when it is imported: of a worker they say at least which job it works for."""
    return {name: value for name, value in environment.items() if name.startswith("RAY_")}


def _receive(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and the files that come with it; nothing of a client that is gone.

    The client is told first that it is heard, and runs its script itself if it is not: so it never runs twice.
    """
    connection, _ = listener.accept()
    try:
        with connection:
            connection.sendall(READY)
            data, descriptors, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 3)
            while data and not data.endswith(b"\n"):
                data += connection.recv(LONGEST_REQUEST)
    except OSError:
        return {}, []
    return json.loads(data) if data else {}, descriptors


def _fork() -> int:
    """As `os.fork`; -1 where there is no room for another process: Ray asks again for a worker that is missing."""
    try:
        return os.fork()
    except OSError:
        return -1


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # which has happened already
        os._exit(1)


def _is_wanted(listener: socket.socket) -> bool:
    """Wait for a request; False if this server's parent has ended instead."""
    return 0 not in select.select([0, listener.fileno()], [], [])[0]


def _become(request: dict[str, Any], descriptors: list[int], *, loaded: bool) -> None:
    """Go on as the process that asked: run its script under its name, in its place.

    Args:
        request: What the process was asked to do, and where.
        descriptors: Its standard input, output and error.
        loaded: Whether what is imported here is what the script would import.
    """
    import numpy as np
    import torch

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends a worker with all of its process group
    for number, one in enumerate(descriptors):
        os.dup2(one, number)
        os.close(one)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if not loaded:
        os.execv(sys.executable, [sys.executable, *request["arguments"]])
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    sys.argv = request["arguments"]
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(Path(sys.argv[0]).parent), *(one for one in path if one and one not in sys.path)]
    runpy.run_path(sys.argv[0], run_name="__main__")
