"""Where trials run: what is accepted, and that a session leaves everything as it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow.fs import LocalFileSystem
from ray import tune

from tune_stn.tuning.cluster import _ENVIRONMENT, Cluster


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus_per_trial": 0}, "cpus_per_trial=0: accepted is a number above 0"),
        ({"cpus_per_trial": -1}, "cpus_per_trial=-1:"),
        ({"cpus_per_trial": float("nan")}, "cpus_per_trial=nan:"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial=-0.5: accepted is a number of 0 or more"),
        ({"cpus_per_trial": float("inf")}, "cpus_per_trial=inf:"),
        ({"cpus_per_trial": 1e-5}, "cpus_per_trial=1e-05:"),
        ({"gpus_per_trial": float("nan")}, "gpus_per_trial=nan:"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial=1.5: accepted are whole GPUs or a share of one"),
        ({"resources": {"fast": 0}}, "resources={'fast': 0}: accepted is a number above 0"),
        ({"resources": {"fast": 1, "slow": -1}}, "resources={'slow': -1}:"),
        ({"resources": {"gpu": 1}}, "resources={'gpu': 1}: use gpus_per_trial="),
        ({"max_concurrent": 0}, "max_concurrent=0: accepted is an integer of 1 or more"),
        ({"storage_filesystem": LocalFileSystem()}, "storage_filesystem: give storage_path, too"),
        ({"address": "nowhere"}, "address=nowhere: accepted are host:port and auto"),
        ({"address": "127.0.0.1:99999"}, "accepted are host:port"),
        ({"address": "ray://127.0.0.1:10001"}, "Ray Client is not supported; start this command"),
        ({"working_dir": "."}, "working_dir=.: only with address="),
        ({"working_dir": "none", "address": "auto"}, "working_dir=none: there is no such folder"),
    ],
)
def test_numbers_that_could_not_start_a_trial_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Cluster(**settings)


def test_resources_of_a_trial_as_tune_wants_them() -> None:
    assert Cluster().per_trial == tune.PlacementGroupFactory([{"CPU": 1}])
    parts = Cluster(cpus_per_trial=0.5, gpus_per_trial=0.25, resources={"fast": 2})
    assert parts.per_trial.bundles == [{"CPU": 0.5, "GPU": 0.25, "fast": 2}]
    somewhere = Cluster(labels={"zone": "b"}).per_trial
    assert somewhere == tune.PlacementGroupFactory([{"CPU": 1}], bundle_label_selector=[{"zone": "b"}])
    assert somewhere != Cluster().per_trial


@pytest.mark.ray
def test_slots_are_what_fits(cluster: Cluster) -> None:
    assert cluster.slots() == 2
    assert Cluster(cpus_per_trial=0.5).slots() == 4
    assert Cluster(cpus_per_trial=0.5, max_concurrent=3).slots() == 3
    assert Cluster(cpus_per_trial=1.5).slots() == 1
    with pytest.raises(ValueError, match=r"wants 3 CPU, but no node has that \(there are nodes with 2 CPU\): lower"):
        Cluster(cpus_per_trial=3).slots()
    with pytest.raises(ValueError, match="wants 1 CPU, 2 GPU"):
        Cluster(gpus_per_trial=2).slots()
    with pytest.raises(ValueError, match="wants 1 CPU, 1 fast"):
        Cluster(resources={"fast": 1}).slots()


@pytest.mark.ray
def test_a_session_inside_a_running_ray_leaves_it_running(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "mine")
    monkeypatch.delenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", raising=False)
    with Cluster().session():
        assert {name: os.environ[name] for name in _ENVIRONMENT} == _ENVIRONMENT
    assert ray.is_initialized()
    assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "mine"
    assert "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS" not in os.environ


@pytest.mark.ray
def test_a_working_directory_comes_too_late_for_a_running_ray(cluster: Cluster, tmp_path: Path) -> None:
    late = Cluster(address="auto", working_dir=tmp_path)
    with pytest.raises(ValueError, match=r"Ray is connected already: give working_dir to ray\.init"), late.session():
        pass
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_storage_that_cannot_be_written_to_is_found_before_a_trial_starts(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    good, bad = (Cluster(storage_path=str(tmp_path / path)) for path in ("runs", "file/runs"))
    good.check(good.storage(tmp_path), "digits-mlp", {}, seed=0)
    with pytest.raises(ValueError, match="file/runs: cannot be written to"):
        bad.check(bad.storage(tmp_path), "digits-mlp", {}, seed=0)


OWN_SESSION = """
import os, sys
import ray
from tune_stn.tuning.cluster import Cluster

for address in sys.argv[1:] or [None]:
    try:
        with Cluster(address=address).session():
            assert ray.is_initialized()
            print(ray.cluster_resources()["CPU"] >= 1, os.environ["RAY_CHDIR_TO_TRIAL_DIR"])
    except ValueError as error:
        print(error, file=sys.stderr)
    finally:
        print(ray.is_initialized(), os.environ.get("RAY_CHDIR_TO_TRIAL_DIR"))
"""


def own_session(*addresses: str) -> subprocess.CompletedProcess[str]:
    """A session at each address, one after the other, or one of its own, in a process without Ray."""
    environment = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
    command = [sys.executable, "-c", OWN_SESSION, *addresses]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)


@pytest.mark.own_ray
def test_a_session_of_its_own_starts_and_stops_ray() -> None:
    assert own_session().stdout.split() == ["True", "0", "False", "None"]


ALONE = """
import contextlib, os
from tune_stn.tuning.token import protect
protect()
import psutil
import ray
from tune_stn.tuning.cluster import Cluster

with Cluster().session():
    assert ray.get(ray.remote(lambda: 1).remote()) == 1  # so there is a worker
    own = psutil.Process()
    addresses = set()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # some last for a moment
            addresses |= {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    print(sorted(addresses))
    node = ray.nodes()[0]
    folder = os.path.dirname(node["ObjectStoreSocketName"])
    while os.stat(folder).st_mode & 0o077 and folder != "/tmp":
        folder = os.path.dirname(folder)
    print(oct(os.stat(folder).st_mode & 0o777))
print(os.path.exists(folder))
"""


@pytest.mark.own_ray
def test_a_local_ray_is_reached_by_nobody_else() -> None:
    """None of its sockets listens beyond loopback, and its session's folder is closed, and gone afterwards."""
    environment = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.splitlines() == ["['127.0.0.1', '::ffff:127.0.0.1']", "0o700", "False"]


def test_an_address_where_nobody_answers_is_refused_at_once() -> None:
    """Ray itself tries for two minutes and then ends the process."""
    began = time.monotonic()
    done = own_session("127.0.0.1:1")
    assert time.monotonic() - began < 60
    assert done.stdout.split() == ["False", "None"]
    message = r"address=127.0.0.1:1: no Ray cluster answers there, or this machine .* \(.*refused"
    assert re.search(message, done.stderr.splitlines()[-1])
