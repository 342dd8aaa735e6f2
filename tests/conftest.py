"""What all tests share: one thread, one Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
