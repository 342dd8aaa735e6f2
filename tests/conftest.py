"""What all tests share: one thread, one Ray."""

from __future__ import annotations

import ast
import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_stn.tuning.token import protect

# Tests work on tiny tensors: where processes share the cores, waiting for a second thread made them ten times as slow.
torch.set_num_threads(1)
# Ray's own is 15: workers would get no time where another process of these tests computes.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling)
# Before any test module imports Ray, which reads the token then.
protect()
# Not the key of whoever runs the tests.
_keys = tempfile.mkdtemp(prefix="tune_stn-test-")
atexit.register(shutil.rmtree, _keys, ignore_errors=True)
os.environ["TUNE_STN_KEY_FILE"] = f"{_keys}/key"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that use Ray come first: all that has to wait for its processes has begun when the rest is shared out.

    Whole scripts and the loops of other libraries are `slow`, as single tests are that say so.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        if {"experiments", "integrations"} & set(item.path.relative_to(item.config.rootpath).parts):
            item.add_marker("slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that use Ray in one process, where pytest runs in several: they share its local Ray.

    The cases of any other test stay together. The groups of pytest-xdist 3.8 would be the same, but come to nothing
    with pytest 9.2, which has no `_nodeid` for them to write to.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            test, _, _ = nodeid.partition("[")
            path, _, name = test.partition("::")
            return "ray" if name in _ray_tests(config.rootpath / path) else test

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@cache
def _ray_tests(file: Path) -> Set[str]:
    """Names of the tests of a file that are marked `ray`, read from its text: this process has imported none."""
    body = ast.parse(file.read_text()).body
    tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    if any(isinstance(node, ast.Assign) and _says_ray(node) for node in body):  # pytestmark
        return {test.name for test in tests}
    return {test.name for test in tests if any(map(_says_ray, test.decorator_list))}


def _says_ray(node: ast.AST) -> bool:
    return "pytest.mark.ray" in ast.unparse(node)


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path of the shared Ray's workers, for the modules that a test has of its own."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Iterator[Any]:
    """A local Ray with two CPUs, started once for all tests that are marked `ray`; gives the `Cluster` to run on.

    Raises:
        FileExistsError: another process of these tests has one already, so they are not shared out as they should be.
    """
    import ray

    from tune_stn.tuning.cluster import _ENVIRONMENT, Cluster, _environment, _start_local
    from tune_stn.tuning.fork_server import fork_server, is_possible

    if "PYTEST_XDIST_WORKER" in os.environ:
        (tmp_path_factory.getbasetemp().parent / "cluster").mkdir()
    path = [str(modules), *filter(None, [os.environ.get("PYTHONPATH")])]
    with ExitStack() as stack:
        python = stack.enter_context(fork_server()) if is_possible() else None
        with _environment(_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path)}):  # which Ray's processes inherit
            _start_local(cpus=2, python=python)
        stack.callback(ray.shutdown)
        found = Cluster()
        with found.session():
            yield found


@pytest.fixture(scope="session")
def tuned(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one self-tuned run of three epochs of three steps, as the command `run` leaves it."""
    from click.testing import CliRunner

    from tune_stn.cli import main

    out = tmp_path_factory.mktemp("tuned") / "study"
    settings = ("train_images=300", "hidden=16", "batch_size=100", "warmup_epochs=0", "hyper_lr=0.01")
    command = ["run", "--task", "digits-mlp", "--algorithm", "stn", "--epochs", "3", "--out", str(out), "--quiet"]
    done = CliRunner().invoke(
        main, [*command, *(part for one in settings for part in ("--set", one))], catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    assert "replay" not in done.stdout
    return out


class Replays:
    """Does what a CUDA graph does, on a CPU: works on the very tensors it was recorded with, and counts.

    Attributes:
        recorded: recordings.
        replayed: replays of them all.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def capture(
        self, function: Callable[..., tuple[Any, ...]], given: Sequence[Any], stream: None
    ) -> tuple[Callable[[], None], list[Any]]:
        """As `tune_stn.nn.cuda_graph.capture`: a recording does nothing yet, so what it writes to comes to be later."""
        self.recorded += 1
        made: list[Any] = []

        def replay() -> None:
            self.replayed += 1
            new = function(*given)
            if not made:
                made.extend(new)
            for mine, other in zip(made, new, strict=True):
                if mine is not None and mine is not other:
                    mine.copy_(other)

        return replay, made


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """Stands in for CUDA graphs."""
    found = Replays()
    monkeypatch.setattr("tune_stn.nn.cuda_graph.capture", found.capture)
    return found


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files: drawing those of a study takes over a second, and few tests look at them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **how: Path(file).touch())
