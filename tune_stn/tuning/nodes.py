"""The nodes of a running cluster: how many trials each takes, and what each must have before one starts there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import ray
from pyarrow.fs import FileSystem
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_stn.tasks.task import Task
from tune_stn.tuning.resources import UNIT

LOOK_EVERY_S = 10.0
LOST_S = 300.0  # for another node to come in place of the last one that could take a trial
ANSWER_S = 120.0  # for a node to start a process, import torch and read the task's data
# Tune gives trials these of the driver's variables; a bucket may need them.
PASSED_ON = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        name: Ray's id of the node.
        address: IP address of the node.
        resources: All resources that it has, in use or not.
        labels: Labels given to `ray start --labels`, and Ray's own.
    """

    name: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def fits(self, bundle: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """How many bundles of resources fit side by side; 0 on a node without these labels."""
        if any(self.labels.get(key) != value for key, value in labels.items()):
            return 0
        return min(self._fits(resource, amount) for resource, amount in bundle.items())

    def _fits(self, resource: str, amount: float) -> int:
        have, wanted = round(self.resources.get(resource, 0) * UNIT), round(amount * UNIT)
        if resource == "GPU" and wanted < UNIT:
            return have // UNIT * (UNIT // wanted)  # a share is of one device: two of .6 do not fit one and a bit
        return have // wanted


def alive_nodes() -> list[Node]:
    """The cluster's nodes at this moment. Needs a session."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"], node.get("Labels", {}))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def trial_slots(nodes: Iterable[Node], bundle: Mapping[str, float], labels: Mapping[str, str]) -> int:
    """Trials that the nodes take at a time; each must fit one node, whatever all of them have together.

    Raises:
        ValueError: none fits any.
    """
    nodes = list(nodes)
    if found := sum(node.fits(bundle, labels) for node in nodes):
        return found
    have = {", ".join(f"{node.resources.get(name, 0):g} {name}" for name in bundle) for node in nodes}
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    where = "".join(f", on a node labelled {key}={value}" for key, value in labels.items())
    raise ValueError(
        f"a trial wants {wanted}{where}, but no node has that (there are nodes with {' or '.join(sorted(have))}): "
        "lower cpus_per_trial=, gpus_per_trial= or resources=, or change labels="
    )


class NodesLost(RuntimeError):
    """No node of the cluster takes a trial any more; what was done is kept."""


class Watch:
    """Notices that no node of the cluster has what a trial needs any more: Ray Tune would wait for one for ever.

    Args:
        bundle: A trial's resources by Ray's names.
        labels: Labels of the nodes that the trials may run on.
    """

    def __init__(self, bundle: Mapping[str, float], labels: Mapping[str, str]) -> None:
        self.bundle, self.labels = bundle, labels
        self._fitted = self._looked = time.monotonic()

    def look(self) -> None:
        """Look at the nodes, if that is some time ago.

        Raises:
            NodesLost: For so long, none has had what a trial needs.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        try:
            trial_slots(alive_nodes(), self.bundle, self.labels)
        except ValueError as error:
            if now - self._fitted >= LOST_S:
                raise NodesLost(f"nodes were lost: for {LOST_S:g} s, {str(error).rpartition(':')[0]}") from None
        else:
            self._fitted = now


def check_nodes(
    nodes: Sequence[Node],
    *,
    marker: str,
    filesystem: FileSystem,
    task: str | Task,
    settings: Mapping[str, Any],
    seed: int,
) -> None:
    """Have every node look for what a trial needs, all at the same time.

    Args:
        nodes: The nodes to ask.
        marker: A file in the storage, which each must see, and beside which each must be able to write.
        filesystem: File system of the marker.
        task: The task, which each must be able to make, with its data.
        settings: Settings of the task.
        seed: Seed of the data.

    Raises:
        ValueError: something is missing on a node; the message names the node and says what to do.
    """
    work = ray.put((task, dict(settings), seed))
    credentials = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    look = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": credentials})(_look())
    answers = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False)).remote(
            marker, filesystem, metadata.version("tune_stn"), [work]
        ): node.address
        for node in nodes
    }
    _, late = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_S)
    problems: dict[str, list[str]] = {}
    for answer, address in answers.items():
        problem = f"no answer within {ANSWER_S:g} s" if answer in late else _answer(answer)
        if problem:
            problems.setdefault(problem, []).append(address)
    for problem, addresses in problems.items():
        raise ValueError(f"node{'s' * (len(addresses) > 1)} {', '.join(addresses)}: {problem}")


def _answer(answer: Any) -> str:
    try:
        return str(ray.get(answer))
    except RayError as error:
        cause = getattr(error, "cause", error)
        return (
            f"the task cannot be made there ({type(cause).__name__}: {cause}); working_dir= sends a folder with your "
            "own modules to all nodes, and data must lie where each of them finds it"
        )


def _look() -> Callable[..., str]:
    """A function that says what is wrong on the node it runs on, or nothing.

    It is made inside a function because Ray then sends its code: a node without this package could not import it.
    """

    def look(marker: str, filesystem: FileSystem, version: str, work: list[Any]) -> str:
        import uuid
        from importlib import metadata

        import ray
        from pyarrow.fs import FileType

        if filesystem.get_file_info(marker).type == FileType.NotFound:
            folder = marker.rpartition("/")[0]
            return (
                f"{folder} is not the folder of that name that the driver writes to, so checkpoints would be lost; "
                "give storage_path= a folder or URI that all nodes share (NFS, s3://..., gs://...)"
            )
        mine = f"{marker}-{uuid.uuid4().hex}"
        try:
            filesystem.open_output_stream(mine).close()
            filesystem.delete_file(mine)
        except OSError as error:
            return f"cannot write to the storage ({error}); give storage_path= one that all nodes can write to"
        try:
            found = metadata.version("tune_stn")
        except metadata.PackageNotFoundError:
            return f"tune_stn is not installed there; install tune_stn=={version}, as on the driver"
        if found != version:
            return f"has tune_stn {found}, but the driver has {version}; install the same on all nodes"
        from tune_stn.tasks.registry import get_task

        task, settings, seed = ray.get(work[0])
        get_task(task, **settings).data(seed)
        return ""

    return look
