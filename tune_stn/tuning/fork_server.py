"""Ray workers that start with their imports done: they are forked from a process that has torch and the rest loaded.

A Ray worker is a new Python process, in which importing torch and this package takes over two CPU seconds. A study
starts one for each trial or two, so on a laptop most of its time would go there. With Ray's documented option
`py_executable`, Ray starts `fork_client.py` instead of Python: a small script that hands its arguments, environment and
open files to the server here and ends, while a fork of the server goes on as the worker. The server never imports Ray,
which reads its settings from the environment when it is imported, and has no second thread, which a fork would lose.
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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = Path(__file__).with_name("fork_client.py")
# What a trial imports, but for Ray: of Ray's own needs those that take long, where they are installed.
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
LONGEST_REQUEST = 1 << 20  # bytes
READY = b"1"
PR_SET_PDEATHSIG = 1  # of the kernel: see prctl(2)
# Arrow's allocator would start a thread; torch takes the number of threads that each trial gives it.
ENVIRONMENT = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OMP_NUM_THREADS": "1"}


def is_possible() -> bool:
    """Whether this machine can fork a process that has torch loaded: on Linux."""
    return sys.platform == "linux"


@contextmanager
def fork_server() -> Iterator[str]:
    """A server inside the block; gives the command to start Python by: Ray's `py_executable`.

    It answers as soon as its imports are done, and until then requests wait. It ends with this process, however that
    ends, and so does what it has forked: a run whose study was killed would else go on for seconds.
    """
    with tempfile.TemporaryDirectory(prefix="tune_stn-") as folder:  # for this user alone
        path = Path(folder) / "socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1024)
        code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tune_stn.tuning import fork_server as f; "
        server = subprocess.Popen(
            [sys.executable, "-c", f"{code}f.serve({listener.fileno()})", json.dumps(sys.path)],
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


def serve(descriptor: int) -> None:
    """Do the imports, then fork a process for each request, until standard input ends; only forks return.

    Args:
        descriptor: of a listening Unix socket.
    """
    for name in MODULES:
        importlib.import_module(name)
    for name in NEEDS_OF_RAY:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    assert "ray" not in sys.modules, "Ray would keep the settings of this process in all of its forks"
    assert threading.active_count() == 1, "a fork has only the thread that makes it"
    # What is loaded stays: a fork that looked for garbage in it would copy all of its memory, over a tenth of a second.
    gc.collect()
    gc.freeze()
    listener = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    server = os.getpid()
    while _is_wanted(listener):
        request, descriptors = _receive(listener)
        if request and _fork() == 0:
            listener.close()
            _end_with(server)
            _become(request, descriptors)
            return
        for one in descriptors:
            os.close(one)
    os._exit(0)  # at once, for the forks end with it


def _receive(listener: socket.socket) -> tuple[dict[str, object], list[int]]:
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


def _become(request: dict[str, object], descriptors: list[int]) -> None:
    """Go on as the process that asked: run its script under its name, in its place."""
    import numpy as np
    import torch

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends a worker with all of its process group
    for number, one in enumerate(descriptors):
        os.dup2(one, number)
        os.close(one)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    os.chdir(str(request["folder"]))
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    sys.argv = list(request["arguments"])  # type: ignore[call-overload]
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(Path(sys.argv[0]).parent), *(one for one in path if one and one not in sys.path)]
    runpy.run_path(sys.argv[0], run_name="__main__")
