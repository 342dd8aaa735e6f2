"""Nodes: how many trials fit, and what is found missing before one starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from tune_stn.tasks import get_task
from tune_stn.tuning import nodes
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.nodes import (
    LOOK_EVERY_S,
    LOST_S,
    Node,
    NodesLost,
    Watch,
    alive_nodes,
    check_nodes,
    trial_slots,
)
from tune_stn.tuning.storage import Storage, open_storage


def node(labels: Mapping[str, str] | None = None, **resources: float) -> Node:
    return Node("id", "10.0.0.1", resources, labels or {})


@pytest.mark.parametrize(
    ("resources", "bundle", "count"),
    [
        ({"CPU": 4}, {"CPU": 1}, 4),
        ({"CPU": 4}, {"CPU": 1.5}, 2),
        ({"CPU": 1}, {"CPU": 0.1}, 10),
        ({"CPU": 0.3}, {"CPU": 0.1}, 3),  # .3 / .1 is a little less in floating point
        ({"CPU": 4}, {"CPU": 8}, 0),
        ({"CPU": 4}, {"CPU": 1, "GPU": 1}, 0),
        ({"CPU": 4, "GPU": 2}, {"CPU": 1, "GPU": 1}, 2),
        ({"CPU": 4, "GPU": 2}, {"CPU": 1, "GPU": 2}, 1),
        ({"CPU": 9, "GPU": 2}, {"CPU": 1, "GPU": 0.25}, 8),
        ({"CPU": 9, "GPU": 2}, {"CPU": 1, "GPU": 0.6}, 2),  # one a device, though 2 / .6 is above 3
        ({"CPU": 9, "fast": 3}, {"CPU": 1, "fast": 1}, 3),
        ({"CPU": 9, "fast": 3}, {"CPU": 1, "fast": 2}, 1),
        ({"CPU": 9, "memory": 4e9}, {"CPU": 1, "memory": 1.5e9}, 2),
    ],
)
def test_trials_that_fit_a_node(resources: dict[str, float], bundle: dict[str, float], count: int) -> None:
    assert node(**resources).fits(bundle, {}) == count


def test_a_trial_must_fit_one_node_whatever_all_have_together() -> None:
    halves = [node(CPU=1), node(CPU=1)]
    assert trial_slots(halves, {"CPU": 1}, {}) == 2
    message = (
        r"a trial wants 2 CPU, but no node has that \(there are nodes with 1 CPU\): lower cpus_per_trial=, "
        "gpus_per_trial= or resources="
    )
    with pytest.raises(ValueError, match=message):
        trial_slots(halves, {"CPU": 2}, {})
    apart = [node(CPU=4), node(CPU=1, GPU=1), node(CPU=4)]
    assert trial_slots(apart, {"CPU": 1, "GPU": 0.5}, {}) == 1
    with pytest.raises(ValueError, match=r"wants 2 CPU, 1 GPU, .* nodes with 1 CPU, 1 GPU or 4 CPU, 0 GPU\)"):
        trial_slots(apart, {"CPU": 2, "GPU": 1}, {})


def test_only_nodes_with_the_labels_count() -> None:
    two = [node({"zone": "a", "disk": "ssd"}, CPU=2), node({"zone": "b"}, CPU=3)]
    assert trial_slots(two, {"CPU": 1}, {"zone": "a"}) == 2
    assert trial_slots(two, {"CPU": 1}, {"zone": "b"}) == 3
    with pytest.raises(ValueError, match="wants 1 CPU, on a node labelled zone=c, but no node has that"):
        trial_slots(two, {"CPU": 1}, {"zone": "c"})
    with pytest.raises(ValueError, match="labelled zone=b, on a node labelled disk=ssd"):
        trial_slots(two, {"CPU": 1}, {"zone": "b", "disk": "ssd"})


# What a node lacks --------------------------------------------------------------------------------------------------


def check(storage: Storage, task: Any = "digits-mlp", settings: Mapping[str, Any] | None = None) -> None:
    with storage.marker() as marker:
        check_nodes(
            alive_nodes(), marker=marker, filesystem=storage.filesystem, task=task, settings=settings or {}, seed=0
        )


@pytest.mark.ray
def test_a_node_that_lacks_nothing(cluster: Cluster, tmp_path: Path) -> None:
    check(open_storage(str(tmp_path)), settings={"train_images": 100})
    check(open_storage(str(tmp_path)), task=get_task("digits-mlp", train_images=100))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_storage_that_a_node_does_not_share(cluster: Cluster) -> None:
    """A file system in the memory of each process: what the driver writes, no other sees."""
    (one,) = alive_nodes()
    message = (
        f"node {one.address}: .*runs is not the folder of that name .* give storage_path= a folder or URI that all"
    )
    with pytest.raises(ValueError, match=message):
        check(open_storage("fsspec+memory://runs"))


@pytest.mark.ray
def test_another_version_a_missing_module_and_missing_data(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path / "runs"))
    with pytest.raises(ValueError, match=r"task cannot be made there \(ValueError: task 'nothing:task': .*working_dir"):
        check(storage, "nothing:task")
    (tmp_path / "only_here.py").write_text("from tune_stn.tasks import get_task\ntask = get_task('digits-mlp')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"no module 'only_here'.*working_dir= sends a folder"):
        check(storage, "only_here:task")
    with pytest.raises(ValueError, match=r"Fashion-MNIST not found in .*data must lie where each of them finds it"):
        check(storage, "fashion-mnist-mlp", {"data_dir": str(tmp_path)})
    monkeypatch.setattr(nodes.metadata, "version", lambda name: "99.0")
    with pytest.raises(ValueError, match=r"has tune_stn .*, but the driver has 99\.0; install the same on all nodes"):
        check(storage)


def test_a_node_without_this_package(tmp_path: Path) -> None:
    """The function that looks gets there, and says so."""
    code = """
import importlib.metadata, pickle, sys
from pyarrow.fs import LocalFileSystem
def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = absent
sys.modules["tune_stn"] = None
look = pickle.loads(sys.stdin.buffer.read())
print(look(sys.argv[1], LocalFileSystem(), "1.2", []))
"""
    with open_storage(str(tmp_path)).marker() as marker:
        done = subprocess.run(
            [sys.executable, "-c", code, marker],
            input=cloudpickle.dumps(nodes._look()),
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == "tune_stn is not installed there; install tune_stn==1.2, as on the driver"


def test_a_run_that_no_node_can_take_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now, alive = [0.0], [node(CPU=2)]
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(nodes, "alive_nodes", lambda: alive)
    watch = Watch({"CPU": 2}, {})

    def wait(seconds: float) -> None:
        now[0] += seconds
        watch.look()

    wait(10 * LOST_S)
    alive[:] = [node(CPU=1)]
    wait(LOOK_EVERY_S)
    wait(LOST_S - LOOK_EVERY_S - 1)
    alive[:] = [node(CPU=1), node(CPU=4)]  # another one has come
    wait(LOOK_EVERY_S)
    alive[:] = [node(CPU=1)]
    wait(LOST_S - 1)
    now[0] += 1
    watch.look()  # it looks now and then
    with pytest.raises(
        NodesLost, match=r"nodes were lost: for 300 s, a trial wants 2 CPU, but no node has that \(there"
    ):
        wait(LOOK_EVERY_S)
