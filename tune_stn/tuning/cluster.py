"""The Ray cluster that a command runs on, and what each trial gets of it.

The settings are checked without Ray and torch, which take seconds to load: only the functions that need them load them.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import FileSystem

from tune_stn.tuning.fork_server import fork_server, is_possible
from tune_stn.tuning.ground import Servers, ended_when_late, standing_on, terminated_like_interrupted
from tune_stn.tuning.resources import UNIT, is_local
from tune_stn.tuning.storage import Storage, open_storage
from tune_stn.tuning.token import LOOPBACK

if TYPE_CHECKING:
    from ray import tune

    from tune_stn.tasks.task import Task

# Tune reads these when it is used: our recorder keeps the reports, so Tune's own three log files per trial (3 ms a
# report) are left out; trials stay in the driver's directory, so relative paths of a task mean the same there.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # processes without this package, which no trial would use
}

LAST_PORT = 65_535
KNOCK_S = 10.0
LONGEST_FOLDER = 30  # characters; a socket's path has about a hundred


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where trials run.

    Attributes:
        address: Address of a running Ray cluster; None starts a local one on loopback and stops it afterwards. This
            process must run on one of the cluster's nodes. Default None.
        cpus_per_trial: CPUs of a trial, and its number of threads; fractions are allowed.
        gpus_per_trial: GPUs of a trial; fractions share one.
        resources: Further resources of a trial: Ray's custom resources, or `memory` in bytes. Default none.
        labels: Ray labels of the nodes that trials may run on. Ray itself spreads trials over the nodes they fit on.
            Default none: any node.
        max_concurrent: Number of trials at a time, of all runs together. Default None: as many as fit.
        storage_path: Where Tune keeps checkpoints, a folder or a URI such as `s3://bucket/folder`; all nodes must share
            it. Default None: a folder of the study.
        storage_filesystem: A file system of pyarrow, where no URI leads to it; `storage_path` is then a path on it.
            Default None.
        working_dir: A folder that Ray copies to every node, the trials' current directory and on their Python path.
            Default None.

    Raises:
        ValueError: a number with which work could never start, an address that is none, a file system without a path,
            or a working directory that is none or has nowhere to go.
    """

    address: str | None = None
    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    max_concurrent: int | None = None
    storage_path: str | None = None
    storage_filesystem: FileSystem | None = None
    working_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if not 1 / UNIT <= self.cpus_per_trial < math.inf:
            raise ValueError(f"cpus_per_trial={self.cpus_per_trial:g}: accepted is a number above 0")
        if not (self.gpus_per_trial == 0 or 1 / UNIT <= self.gpus_per_trial < math.inf):
            raise ValueError(f"gpus_per_trial={self.gpus_per_trial:g}: accepted is a number of 0 or more")
        if self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ValueError(f"gpus_per_trial={self.gpus_per_trial:g}: accepted are whole GPUs or a share of one")
        for name, amount in self.resources.items():
            if name.lower() in ("cpu", "gpu"):
                raise ValueError(f"resources={{'{name}': {amount:g}}}: use {name.lower()}s_per_trial=")
            if not 1 / UNIT <= amount < math.inf:
                raise ValueError(f"resources={{'{name}': {amount:g}}}: accepted is a number above 0")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"max_concurrent={self.max_concurrent}: accepted is an integer of 1 or more")
        if self.address is not None:
            _check_address(self.address)
        if self.storage_filesystem is not None and self.storage_path is None:
            raise ValueError("storage_filesystem: give storage_path, too, a path on it")
        if self.working_dir is not None:
            if self.address is None:
                raise ValueError(f"working_dir={self.working_dir}: only with address=; a local Ray has the folder")
            if not Path(self.working_dir).is_dir():
                raise ValueError(f"working_dir={self.working_dir}: there is no such folder")

    @property
    def bundle(self) -> dict[str, float]:
        """A trial's resources by Ray's names."""
        return {
            "CPU": self.cpus_per_trial,
            **({"GPU": self.gpus_per_trial} if self.gpus_per_trial else {}),
            **self.resources,
        }

    @property
    def per_trial(self) -> tune.PlacementGroupFactory:
        """A trial's resources and labels, as Tune wants them."""
        from ray import tune

        # A trial is one bundle. Ray puts each on the node with most to spare, whatever the strategy.
        where: dict[str, Any] = {"bundle_label_selector": [dict(self.labels)]} if self.labels else {}
        return tune.PlacementGroupFactory([self.bundle], **where)

    def slots(self) -> int:
        """Trials that run at a time. Raises ValueError if not even one fits any node. Needs a session."""
        from tune_stn.tuning.nodes import alive_nodes, trial_slots

        found = trial_slots(alive_nodes(), self.bundle, self.labels)
        return min(found, self.max_concurrent or found)

    def check_machine(self) -> None:
        """Refuse, before Ray is started on this machine, trials that want more of it than there is.

        Raises:
            ValueError: a trial wants more CPUs or GPUs, or a resource that only the nodes of a cluster can have; the
                message says what there is.
        """
        if self.address is not None or is_connected():
            return
        for name, wanted, count in (("CPU", self.cpus_per_trial, os.cpu_count), ("GPU", self.gpus_per_trial, _gpus)):
            if wanted and wanted > (has := count() or 0):
                option = f"{name.lower()}s_per_trial={wanted:g}"
                raise ValueError(f"{option}: this machine has {has} {name}s; with address=, a cluster's nodes count")
        for name, amount in self.resources.items():
            if not is_local(name):
                raise ValueError(
                    f"resources={{'{name}': {amount:g}}}: a Ray that is started here has no such resource, only memory "
                    "and object_store_memory; with address=, a cluster's nodes have what they were started with"
                )

    def storage(self, folder: Path) -> Storage:
        """Where Tune keeps checkpoints: in `folder` if nothing else is given.

        Raises:
            ValueError: pyarrow cannot open the storage path.
        """
        return open_storage(self.storage_path or str(folder), self.storage_filesystem)

    def check(self, storage: Storage, task: str | Task, settings: Mapping[str, Any], *, seed: int) -> None:
        """Find out what would fail on another machine, before a trial starts there. Needs a session.

        Args:
            storage: Storage of the trials.
            task: Task of the trials.
            settings: Settings of the task.
            seed: Seed of the data.

        Raises:
            ValueError: the storage cannot be written to, or a node that trials may run on does not share it, has not
                the same version of this package, or cannot make the task; the message says which and what to do.
        """
        from tune_stn.tuning.nodes import alive_nodes, check_nodes

        nodes = alive_nodes()
        with storage.marker() as marker:
            if self.address is not None or len(nodes) > 1:
                check_nodes(
                    [node for node in nodes if node.fits(self.bundle, self.labels)],
                    marker=marker,
                    filesystem=storage.filesystem,
                    task=task,
                    settings=settings,
                    seed=seed,
                )

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """What a process that calls Tune has set inside the block: environment variables, and silence of Tune's log."""
        with _environment(_ENVIRONMENT), _without_tune_log():
            yield

    @contextmanager
    def session(self) -> Iterator[None]:
        """Ray, connected inside the block; shut down afterwards if it was started here.

        SIGTERM is like Ctrl-C inside the block.

        Raises:
            ValueError: there is no cluster at `address`, or Ray is connected already and so cannot be given the
                working directory any more.
            GroundLost: Ray has gone while the block went on.
        """
        import ray

        with ExitStack() as stack:
            stack.enter_context(self.surroundings())
            stack.enter_context(terminated_like_interrupted())  # restores what was there, which Ray's end does not
            late = stack.enter_context(ended_when_late())
            if not ray.is_initialized():
                folder = stack.enter_context(_own_folder())
                stack.callback(ray.shutdown)  # after the server, so that no worker waits for it in vain
                if self.address is None:
                    python = stack.enter_context(fork_server(folder)) if is_possible() else None
                    _start_local(python=python, folder=folder)
                else:
                    _connect(self.address, self.working_dir)
            elif self.working_dir is not None:
                raise ValueError("Ray is connected already: give working_dir to ray.init, in its runtime_env")
            stack.push(late)
            stack.enter_context(terminated_like_interrupted())  # in place of the handlers that Ray has come with
            stack.enter_context(standing_on(_servers()))
            yield


def is_connected() -> bool:
    """Whether this process is connected to a Ray. Does not load Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _start_local(cpus: int | None = None, *, python: str | None = None, folder: str | None = None) -> None:
    """Ray on this machine alone, with all of its CPUs or `cpus`, and a loopback address for its node.

    Workers are started by the command `python`, default this process's own; its session is kept in `folder`, default
    Ray's own. Ray's servers listen on loopback alone after `token.protect`, else on every interface.
    """
    import ray
    from ray.util import get_node_ip_address

    how: dict[str, Any] = {}
    if get_node_ip_address() == LOOPBACK:  # type: ignore[no-untyped-call]
        how["_node_ip_address"] = LOOPBACK
    elif sys.platform == "linux":
        how["_node_ip_address"] = "127.0.0.2"  # Ray would rewrite 127.0.0.1 to the machine's outer address
    if folder is not None:
        how["_temp_dir"] = folder
    if python is not None:
        how["runtime_env"] = {"py_executable": python}
    # "local", for without an address Ray joins a cluster that it finds on this machine.
    ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **how)


@contextmanager
def _own_folder() -> Iterator[str]:
    """A folder for a session of Ray's, which others can neither read nor write to: Ray's own are open to all.

    It is removed afterwards, but kept where an error passes, for Ray's logs are in it.
    """
    # The paths of Ray's sockets are in it, and must not be long.
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_FOLDER else "/tmp"
    outer = tempfile.mkdtemp(prefix="tune_stn-", dir=short)
    try:
        yield os.path.join(outer, "ray")  # which Ray opens to all, inside one that is closed
    except Exception:
        raise
    except BaseException:
        shutil.rmtree(outer, ignore_errors=True)
        raise
    shutil.rmtree(outer, ignore_errors=True)


def _servers() -> Servers:
    """The servers of Ray without which nothing goes on here. Needs a session."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    servers = {"the head of the Ray cluster (its gcs_server)": (host.strip("[]"), int(port))}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] == context.get_node_id():
            servers["the raylet of this machine"] = (node["NodeManagerAddress"], node["NodeManagerPort"])
    return servers


def _connect(address: str, working_dir: str | Path | None) -> None:
    import ray

    runtime_env = {"working_dir": str(working_dir)} if working_dir is not None else None
    try:
        if address != "auto":
            _knock(address)
        ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    except OSError as error:
        raise ValueError(
            f"address={address}: no Ray cluster answers there, or this machine is none of its nodes ({error})"
        ) from None


def _check_address(address: str) -> None:
    if address.startswith("ray://"):
        # Tune would run on the head node, and so would the recorder: its files would not be here.
        advice = "start this command on a node of the cluster, as `ray job submit` does, with address=auto"
        raise ValueError(f"address={address}: Ray Client is not supported; {advice}")
    _, colon, port = address.rpartition(":")
    if address != "auto" and (not colon or not port.isdecimal() or int(port) > LAST_PORT):
        raise ValueError(f"address={address}: accepted are host:port and auto")


def _knock(address: str) -> None:
    """Raise OSError if no server listens at an address: Ray itself tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
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
