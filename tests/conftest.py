"""What all tests share: one thread, one Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from tune_stn.tuning.token import require_token

# Tests work on tiny tensors: where processes share the cores, waiting for a second thread made them ten times as slow.
torch.set_num_threads(1)
# Ray's own is 15: workers would get no time where another process of these tests computes.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling)
# Before any test module imports Ray, which reads the token then.
require_token()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that use Ray in one process, where pytest runs in several: they share its local Ray."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A local Ray with two CPUs, started once for all tests that are marked `ray`; gives the `Cluster` to run on."""
    import ray

    from tune_stn.tuning.cluster import _ENVIRONMENT, Cluster, _environment, _start_local

    with _environment(_ENVIRONMENT):  # which Ray's processes inherit
        _start_local(cpus=2)
    found = Cluster()
    with found.session():
        yield found
    ray.shutdown()


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
