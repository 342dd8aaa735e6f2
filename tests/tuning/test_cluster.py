"""Where trials run: what is accepted, and that a session leaves everything as it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import Any

import pytest
import ray

from tune_stn.tuning.cluster import _ENVIRONMENT, Cluster


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus_per_trial": 0}, "--cpus-per-trial 0: accepted is a number above 0"),
        ({"cpus_per_trial": -1}, "--cpus-per-trial -1:"),
        ({"cpus_per_trial": float("nan")}, "--cpus-per-trial nan:"),
        ({"gpus_per_trial": -0.5}, "--gpus-per-trial -0.5: accepted is a number of 0 or more"),
        ({"max_concurrent": 0}, "--max-concurrent 0: accepted is an integer of 1 or more"),
    ],
)
def test_numbers_that_could_not_start_a_trial_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(**settings)


def test_resources_of_a_trial_as_tune_wants_them() -> None:
    assert Cluster().resources == {"cpu": 1}
    assert Cluster(cpus_per_trial=0.5, gpus_per_trial=0.25).resources == {"cpu": 0.5, "gpu": 0.25}


@pytest.mark.ray
def test_slots_are_what_fits(cluster: Cluster) -> None:
    assert cluster.slots() == 2
    assert Cluster(cpus_per_trial=0.5).slots() == 4
    assert Cluster(cpus_per_trial=0.5, max_concurrent=3).slots() == 3
    assert Cluster(cpus_per_trial=1.5).slots() == 1
    with pytest.raises(ValueError, match="wants 3 CPUs and 0 GPUs, but the cluster has 2 and 0: lower --cpus"):
        Cluster(cpus_per_trial=3).slots()
    with pytest.raises(ValueError, match="wants 1 CPUs and 2 GPUs"):
        Cluster(gpus_per_trial=2).slots()


@pytest.mark.ray
def test_a_session_inside_a_running_ray_leaves_it_running(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "mine")
    monkeypatch.delenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", raising=False)
    with Cluster().session():
        assert {name: os.environ[name] for name in _ENVIRONMENT} == _ENVIRONMENT
    assert ray.is_initialized()
    assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "mine"
    assert "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS" not in os.environ


OWN_SESSION = """
import os, sys
import ray
from tune_stn.tuning.cluster import Cluster

address = sys.argv[1] if len(sys.argv) > 1 else None
try:
    with Cluster(address=address).session():
        assert ray.is_initialized()
        print(ray.cluster_resources()["CPU"] >= 1, os.environ["RAY_CHDIR_TO_TRIAL_DIR"])
finally:
    print(ray.is_initialized(), os.environ.get("RAY_CHDIR_TO_TRIAL_DIR"))
"""


def own_session(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
    command = [sys.executable, "-c", OWN_SESSION, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.ray
def test_a_session_of_its_own_starts_and_stops_ray() -> None:
    done = own_session()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "0", "False", "None"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--address 127.0.0.1:1: no Ray cluster answers there (.*refused"),
        ("nowhere", "--address nowhere: accepted are host:port, ray://host:port and auto"),
        ("127.0.0.1:99999", "accepted are host:port"),
    ],
)
def test_an_address_where_nobody_answers_is_refused_at_once(address: str, message: str) -> None:
    """Ray itself tries for two minutes and then ends the process."""
    began = time.monotonic()
    done = own_session(address)
    assert time.monotonic() - began < 60
    assert done.stdout.split() == ["False", "None"]
    assert re.search(message.replace("(", r"\("), done.stderr.splitlines()[-1])
