"""Workers of Ray are forked from a process that has their imports done."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.fork_server import MODULES, is_possible

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not is_possible(), reason="processes are not forked here")]


def test_a_worker_looks_for_no_garbage_in_what_it_was_forked_with(cluster: Cluster) -> None:
    """It would copy the memory of its parent, which takes a tenth of a second."""

    def looked_at() -> dict[str, Any]:
        import gc
        import sys

        def tells_of(module: str) -> bool:
            return any(one is vars(sys.modules[module]) for one in gc.get_objects())

        gc.enable()
        return {"frozen": gc.get_freeze_count(), "loaded": {name: tells_of(name) for name in modules}}

    modules = ("ray", *MODULES)
    found = ray.get(ray.remote(num_cpus=0)(looked_at).remote())
    assert found["frozen"] > 100_000
    assert found["loaded"] == {"ray": True, **dict.fromkeys(MODULES, False)}
