"""The Ray cluster that a command runs on, and what each trial gets of it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray

# Tune reads these when it is used: our recorder keeps the reports, so Tune's own three log files per trial (3 ms a
# report) are left out; trials stay in the driver's directory, so relative paths of a task mean the same there.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

LAST_PORT = 65_535
KNOCK_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where trials run.

    Attributes:
        address: of a running Ray cluster; None starts a local one on loopback and stops it afterwards.
        cpus_per_trial: CPUs of a trial, and its number of threads; fractions are allowed.
        gpus_per_trial: GPUs of a trial; fractions share one.
        max_concurrent: trials at a time; None for as many as fit.
        storage_path: where Tune keeps checkpoints, anything Tune accepts; None for a folder of the study.

    Raises:
        ValueError: a number is negative or zero where work could never start.
    """

    address: str | None = None
    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    max_concurrent: int | None = None
    storage_path: str | None = None

    def __post_init__(self) -> None:
        if not self.cpus_per_trial > 0:
            raise ValueError(f"--cpus-per-trial {self.cpus_per_trial:g}: accepted is a number above 0")
        if not self.gpus_per_trial >= 0:
            raise ValueError(f"--gpus-per-trial {self.gpus_per_trial:g}: accepted is a number of 0 or more")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"--max-concurrent {self.max_concurrent}: accepted is an integer of 1 or more")

    @property
    def resources(self) -> dict[str, float]:
        """A trial's resources, as Tune wants them."""
        return {"cpu": self.cpus_per_trial} | ({"gpu": self.gpus_per_trial} if self.gpus_per_trial else {})

    def slots(self) -> int:
        """Trials that fit at a time. Raises ValueError if not even one does. Needs a session."""
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        fits = total.get("CPU", 0) / self.cpus_per_trial
        if self.gpus_per_trial:
            fits = min(fits, total.get("GPU", 0) / self.gpus_per_trial)
        if fits < 1:
            raise ValueError(
                f"a trial wants {self.cpus_per_trial:g} CPUs and {self.gpus_per_trial:g} GPUs, but the cluster has "
                f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}: lower --cpus-per-trial or --gpus-per-trial"
            )
        return min(int(fits), self.max_concurrent or int(fits))

    @contextmanager
    def session(self) -> Iterator[None]:
        """Ray, connected inside the block; shut down afterwards if it was started here.

        Raises:
            ValueError: there is no cluster at `address`.
        """
        with ExitStack() as stack:
            stack.enter_context(_environment(_ENVIRONMENT))
            stack.enter_context(_without_tune_log())
            if not ray.is_initialized():
                stack.callback(ray.shutdown)
                if self.address is None:
                    _start_local()
                else:
                    _connect(self.address)
            yield


def _start_local(cpus: int | None = None) -> None:
    """Ray on this machine alone, with all of its CPUs or `cpus`; its node gets a second loopback address, if any.

    Ray's own servers listen on every interface all the same: see `tuning.token`.
    """
    # Ray rewrites 127.0.0.1 to the machine's outer address, but takes 127.0.0.2.
    where: dict[str, Any] = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **where)


def _connect(address: str) -> None:
    try:
        if address != "auto":
            _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except OSError as error:
        raise ValueError(f"--address {address}: no Ray cluster answers there ({error})") from None


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at an address: Ray itself tries for minutes, and then ends the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or int(port) > LAST_PORT:
        raise ValueError(f"--address {address}: accepted are host:port, ray://host:port and auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _without_tune_log() -> Iterator[None]:
    """Tune logs every failed trial with its traceback; the recorder names it in a line."""
    log = logging.getLogger("ray.tune")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
