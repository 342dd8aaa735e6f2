"""What a study says of itself in `study.json`: everything needed to run it again, and what is missing."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tune_stn
from tune_stn.methods import Method
from tune_stn.study.collect import metrics_of
from tune_stn.study.domains import domains_entry
from tune_stn.study.run import NothingToFollow, Run, read_followed
from tune_stn.study.state import clock_of, failures_of, missing_of, restarts_of
from tune_stn.tasks.task import Task
from tune_stn.training.tables import STUDY_SCHEMA_VERSION
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.nodes import alive_nodes


def describe(
    task: Task,
    given: str | None,
    methods: Sequence[Method],
    seeds: Sequence[int],
    budget: float,
    trials: int | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything needed to run the study again."""
    packages = ("tune_stn", "torch", "ray", "optuna", "numpy", "scipy", "pyarrow")
    return {
        "schema_version": STUDY_SCHEMA_VERSION,
        "task": task.name,
        "metrics": metrics_of(task),
        "hyperparameters": list(task.space),
        "domains": domains_entry(task.space),
        "task_given": given,  # module:attribute of a user's own; None for a Task object
        "methods": [method.name for method in methods],
        "seeds": list(seeds),
        "budget": budget if math.isfinite(budget) else None,
        "trials": trials,
        "settings": json.loads(json.dumps(dict(settings), default=repr)),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "git_commit": git_commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "method_settings": {method.name: dict(method.settings) for method in methods if method.settings},
        "missing": [],
        "failures": [],
        "restarts": [],
    }


def describe_cluster(cluster: Cluster) -> dict[str, Any]:
    """Nodes, and what a trial gets of them."""
    nodes = alive_nodes()
    return {
        "nodes": len(nodes),
        "cpus": sum(node.resources.get("CPU", 0) for node in nodes),
        "gpus": sum(node.resources.get("GPU", 0) for node in nodes),
        "cpus_per_trial": cluster.cpus_per_trial,
        "gpus_per_trial": cluster.gpus_per_trial,
        "resources": dict(cluster.resources),
        "labels": dict(cluster.labels),
        "slots": cluster.slots(),
    }


def git_commit(package: Path = Path(tune_stn.__file__).parent) -> str | None:
    """The commit of this project's checkout, if the package lies in one; None in somebody else's, or without git.

    Args:
        package: Folder of the package, whose parent a checkout has at its top, beside the project's own files.
    """
    root = package.resolve().parent
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        return None
    if tomllib.loads((root / "pyproject.toml").read_text()).get("project", {}).get("name") != "tune_stn":
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as in a hook
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def outcome(runs: Sequence[Run], stopped: str = "") -> dict[str, Any]:
    """What came of the runs: those that are `missing`, the trials that failed or were started again after a failure,
    the memory that trials had, and the time that runs took.

    Args:
        runs: Runs of the study.
        stopped: Why runs that have not ended were not gone on with, to be put before the reason. Default nothing.
    """
    return {
        "missing": missing(runs, stopped),
        "failures": [one for run in runs for one in failures_of(run.method.name, run.seed, run.folder)],
        "restarts": [one for run in runs for one in restarts_of(run.method.name, run.seed, run.folder)],
        "peak_memory_mib": _peak_memory(runs),
        "clocks": [one for run in runs for one in clock_of(run.method.name, run.seed, run.folder)],
    }


def missing(runs: Sequence[Run], stopped: str = "") -> list[dict[str, Any]]:
    """The runs whose results are not all there, with the reason, and whether they have `no_result` or gave up.

    Args:
        runs: Runs of the study.
        stopped: Why runs that have not ended were not gone on with, to be put before the reason. Default nothing.
    """
    entries = []
    for run in runs:
        entry = missing_of(run.method.name, run.seed, run.folder, run.limit if run.trials is None else None)
        if run.done is None and run.followed is not None and run.followed.done is not None:
            try:
                read_followed(run.followed)
            except NothingToFollow as error:
                entry = {**entry, "reason": str(error)}
        if entry:
            reason = entry["reason"] if run.done is not None else stopped + entry["reason"]
            entries.append({**entry, "reason": reason})
    return entries


def _peak_memory(runs: Sequence[Run]) -> dict[str, int]:
    """Of each method, the most memory that a trial had, in MiB: so many of them fit a GPU or a node."""
    peaks: dict[str, int] = {}
    for run in runs:
        if run.done and (peak := run.done.get("peak_memory_bytes")):
            peaks[run.method.name] = max(peaks.get(run.method.name, 0), round(peak / 2**20))
    return peaks
