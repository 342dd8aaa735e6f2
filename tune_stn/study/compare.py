"""The comparison: every method on one task, at equal cost and paired seeds."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from textwrap import indent
from typing import Any

from pyarrow.fs import LocalFileSystem

import tune_stn
from tune_stn.methods import Context, Method, Plan, get_method, in_order
from tune_stn.study.collect import metrics_of, write_tables
from tune_stn.study.mend import mending
from tune_stn.study.progress import Progress
from tune_stn.study.remarks import after, before, conversion_entry, conversion_words
from tune_stn.study.report import write_report
from tune_stn.study.results import Results, load_results
from tune_stn.study.run import Interrupted, NothingToFollow, Run, execute, read_followed
from tune_stn.study.state import DiskFull, failures_of, foreign_path, missing_of, naming_a_full_disk, state_folder
from tune_stn.tasks.arguments import check_splits
from tune_stn.tasks.own_code import own_code
from tune_stn.tasks.registry import get_task, look_in
from tune_stn.tasks.task import Task
from tune_stn.training.rehearsal import rehearse
from tune_stn.training.rules import get_rule
from tune_stn.training.schedule import Schedule
from tune_stn.training.tables import STUDY_SCHEMA_VERSION, whole_file
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.nodes import NodesLost, alive_nodes
from tune_stn.tuning.storage import Storage

Say = Callable[[str], None]
SPARE = 2**18  # bytes that a study keeps free to be able to say that its disk is full


def compare(
    task: str | Task,
    methods: Sequence[str],
    *,
    budget: float,
    seeds: int | Sequence[int],
    out: str | Path,
    resume: bool = False,
    retry_failed: bool = False,
    settings: Mapping[str, Any] | None = None,
    cluster: Cluster | None = None,
    rehearsal: bool = True,
    say: Say | None = None,
) -> Results:
    """Give every method the same budget on a task, at every seed, and write the study's directory.

    Every method sees the same model, initial weights, splits and data order at a seed, tries the task's start values
    first, and is cut off when its trials together have spent the budget.

    Args:
        task: a built-in name, `module:attribute`, or a `Task`.
        methods: names of methods; each is run at each seed, one run after the other, as named here, but those that are
            made from the run of another method (`replayed`, `last-values`) after all others.
        budget: cost of each run, in plain-epoch equivalents.
        seeds: how many (0, 1, ...), or which.
        out: directory of the study; must be new, or hold this study if `resume`.
        resume: skip finished runs and go on with the one that was cut off; a run that ended without a result, or was
            given up, is run again.
        retry_failed: with `resume`, run the failed trials of other runs again, too, from their last checkpoints, where
            there is budget left.
        settings: of the task and its training.
        cluster: where to run; default a local Ray.
        rehearsal: whether each kind of step is done once on a few examples, on this machine's CPU, before Ray starts.
            False for a task that needs a GPU or more memory than is here.
        say: called with lines of progress; None for silence.

    Returns:
        The study's results, also on disk.

    Raises:
        ValueError: an argument is not accepted, or the rehearsal failed; nothing was started. Of an exception that code
            of the task's own raised, it is an `OwnCodeError`, with that exception as its cause.
        DiskFull: there was no room for the study's files; the directory can be resumed.
        KeyboardInterrupt: Ctrl-C; the directory can be resumed.
    """
    if not (budget > 0 and math.isfinite(budget)):
        raise ValueError(f"budget={budget:g}: accepted is a number of 1 or more, in plain-epoch equivalents")
    if budget < 1:
        raise ValueError(f"budget={budget:g}: not even one epoch of one trial, which costs 1; accepted is 1 or more")
    if not methods:
        raise ValueError("methods=[]: name at least one method")
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods={list(methods)}: a method is named twice")
    chosen = [get_method(name) for name in methods]
    wanted = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not wanted or len(set(wanted)) < len(wanted) or min(wanted) < 0:
        raise ValueError(f"seeds={seeds}: accepted is a number of seeds, 1 or more, or different seeds of 0 or more")
    return run_study(
        task,
        chosen,
        seeds=wanted,
        budget=budget,
        trials=None,
        out=Path(out),
        resume=resume,
        retry_failed=retry_failed,
        settings=settings or {},
        cluster=cluster or Cluster(),
        rehearsal=rehearsal,
        say=say or (lambda line: None),
    )


def run_study(
    task: str | Task,
    methods: Sequence[Method],
    *,
    seeds: Sequence[int],
    budget: float,
    trials: int | None,
    out: Path,
    resume: bool,
    settings: Mapping[str, Any],
    cluster: Cluster,
    say: Say,
    rehearsal: bool = True,
    retry_failed: bool = False,
) -> Results:
    """Run all (method, seed) pairs and write tables and report; the common core of `compare` and `tune-stn run`.

    Arguments are those of `compare`, checked; `trials` is the number of trials of each run where the budget is
    infinite.
    """
    if retry_failed and not resume:
        raise ValueError("retry_failed=True: only with resume=True, which says that there is a study to go on with")
    # What is missing, be it a method, data, or a way to search the space, is found before anything starts.
    ordered = in_order(methods)
    if cluster.working_dir is not None:
        look_in(Path(cluster.working_dir))
    resolved = get_task(task, **settings)
    with own_code("the data", resolved.name):
        splits = check_splits(resolved.name, resolved.data(seeds[0]))
    steps_per_epoch = splits.train.steps(resolved.training.batch_size)
    schedules: list[Schedule | None] = []
    for method in methods:
        if method.follows is None:  # the others follow a schedule in this very space
            plan = method.plan(Context(resolved, budget, seeds[0], slots=1, trials=trials))
            _check_hyper_steps(resolved, method, plan, steps_per_epoch, budget)
            schedules.append(plan.config.get("schedule"))
    storage = cluster.storage(out / "state")
    conversion: dict[str, Any] = {}
    remarks: list[str] = []
    if rehearsal:
        schedule = next((one for one in schedules if one is not None), None)
        found = rehearse(resolved, [method.algorithm for method in methods], splits, seed=seeds[0], schedule=schedule)
        conversion = {algorithm: conversion_entry(one) for algorithm, one in found.items()}
        remarks = before(resolved, splits)
    del splits  # may be large, and trials have their own
    given = task if isinstance(task, str) else None
    study: dict[str, Any] = _description(resolved, given, methods, seeds, budget, trials, settings)
    study |= {"conversion": conversion, "remarks": remarks}
    _prepare_directory(out, study, resume)
    if resume:
        _check_owner(out, storage if cluster.storage_path else None)
    config = {"task": task, "keep_best": True, **_from_here(settings, cluster)}
    runs: list[Run] = []
    for seed in seeds:  # all methods at a seed before the next seed: an unfinished study is still a comparison
        at_seed: dict[str | None, Run] = {}
        for method in ordered:
            at_seed[method.name] = Run(
                task=resolved,
                config=config,
                method=method,
                seed=seed,
                budget=budget,
                trials=trials,
                folder=state_folder(out, method.name, seed),
                followed=at_seed.get(method.follows),
            )
        runs.extend(at_seed.values())
    if not resume:  # or it was said before
        for algorithm, words in conversion_words(conversion).items() if len(methods) == 1 else ():
            say(f"the network under {algorithm}:\n{indent(words, '  ')}")
        for remark in remarks:
            say(f"note: {remark}")
    progress = Progress(say, total=len(runs))
    with naming_a_full_disk(out), cluster.session():
        study["cluster"] = _cluster_description(cluster)
        cluster.check(storage, task, _from_here(settings, cluster), seed=seeds[0])
        study["missing"] = _missing(runs)  # so it says should this process be killed
        _write_study(out, study)
        spare = out / ".spare"
        spare.write_bytes(bytes(SPARE))  # room for the last words, should there be no other
        taken_up: list[Run] = []
        stopped = ""
        try:
            for run in runs:
                again = mending(run, retry_failed=retry_failed, taken_up=taken_up)
                if run.done is not None and again is None:
                    progress.skipped(run)
                    continue
                taken_up.append(run)
                if again is not None and again.anew:
                    shutil.rmtree(run.folder)
                try:
                    why = again.why if again is not None else ""
                    with naming_a_full_disk(out), progress.running(run, why) as on_report:
                        record = execute(
                            run, cluster, on_report, partial(progress.failed, run), retry_failed=retry_failed
                        )
                except NothingToFollow as error:
                    progress.without_result(run, str(error))
                except NodesLost as error:
                    progress.without_result(run, str(error))
                    stopped = f"{error}; "
                    break  # the others would fare no better
                except DiskFull as error:
                    stopped = f"{error}; "
                    raise
                else:
                    progress.finished(run, record)
        except Interrupted:
            raise KeyboardInterrupt from None
        finally:
            spare.unlink(missing_ok=True)
            study["missing"] = _missing(runs, stopped)
            study["failures"] = [one for run in runs for one in failures_of(run.method.name, run.seed, run.folder)]
            study["peak_memory_mib"] = _peak_memory(runs)
            _write_study(out, study)
            write_tables(resolved, runs, out)
    with naming_a_full_disk(out):
        results = load_results(out)
        for remark in after(resolved.space, results.reports, results.incumbent):
            say(f"note: {remark}")
            results.study["remarks"].append(remark)
        _write_study(out, results.study)
        write_report(results)
    return results


def _from_here(settings: Mapping[str, Any], cluster: Cluster) -> dict[str, Any]:
    """The settings as trials get them: their current directory may be another one, where `data_dir` would lead astray.

    With a working directory that is sent to all nodes, a relative path means a place in it.
    """
    folder = settings.get("data_dir")
    if cluster.working_dir is not None or not isinstance(folder, (str, Path)):
        return dict(settings)
    return {**settings, "data_dir": str(Path(folder).expanduser().absolute())}


def _check_hyper_steps(task: Task, method: Method, plan: Plan, steps_per_epoch: int, budget: float) -> None:
    """Refuse a run that is to tune and is over before its first hyper-step; a control that has none on purpose is none.

    An epoch costs 1 at least, so there are no more of them than the budget says.

    Raises:
        ValueError: it is; the message says why.
    """
    epochs = min(task.training.epochs, math.ceil(budget)) if math.isfinite(budget) else task.training.epochs
    training = replace(task.training, epochs=epochs)
    if not get_rule(method.algorithm).tunes or "warmup_epochs" in plan.config or training.hyper_steps(steps_per_epoch):
        return
    more = "more epochs=" if epochs == task.training.epochs else f"more than budget={budget:g}"
    raise ValueError(
        f"{method.name} would tune nothing on task {task.name!r}: a run of {training.epochs} epochs of "
        f"{steps_per_epoch} training steps, the first {training.warmup_epochs} of them warm-up, is over before its "
        f"first hyper-step, which comes after {training.train_steps} training steps; give {more}, or a smaller "
        "warmup_epochs=, train_steps= or batch_size="
    )


def _prepare_directory(out: Path, study: dict[str, Any], resume: bool) -> None:
    """Make the directory, or check that it holds this very study. Raises ValueError saying what is wrong."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={out}: cannot be made a directory ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise ValueError(f"out={out}: not writable")
    path = out / "study.json"
    if path.exists():
        if not resume:
            raise ValueError(f"out={out}: holds a study already; add resume=True to go on with it, or choose another")
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); choose another out=") from None
        if not isinstance(before, dict):
            raise ValueError(f"{path} describes no study; choose another out=")
        for key in ("task", "task_given", "budget", "trials", "settings", "method_settings"):
            if (before.get(key) or None) != (study[key] or None):  # earlier versions wrote no method_settings
                raise ValueError(f"resume=True: {out} was begun with {key} {before.get(key)!r}, not {study[key]!r}")


def _check_owner(out: Path, storage: Storage | None) -> None:
    """Refuse to resume what somebody else may have written: see SECURITY.md."""
    local = storage is not None and isinstance(storage.filesystem, LocalFileSystem)
    path = foreign_path(out, Path(storage.path) if storage is not None and local else None)
    if path is not None:
        try:
            owner = path.owner()
        except KeyError:
            owner = f"user {path.stat().st_uid}"
        raise ValueError(
            f"resume=True: {path} belongs to {owner}, and to resume is to run what Ray Tune's state there says; a copy "
            "of your own can be resumed, if you trust it"
        )


def _description(
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
        "task_given": given,  # module:attribute of a user's own; None for a Task object
        "methods": [method.name for method in methods],
        "seeds": list(seeds),
        "budget": budget if math.isfinite(budget) else None,
        "trials": trials,
        "settings": json.loads(json.dumps(dict(settings), default=repr)),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "git_commit": _git_commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "method_settings": {method.name: dict(method.settings) for method in methods if method.settings},
        "missing": [],
        "failures": [],
    }


def _cluster_description(cluster: Cluster) -> dict[str, Any]:
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


def _git_commit(package: Path = Path(tune_stn.__file__).parent) -> str | None:
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


def _missing(runs: Sequence[Run], stopped: str = "") -> list[dict[str, Any]]:
    """The runs whose results are not all there, with the reason, and whether they have `no_result` or gave up.

    Args:
        runs: Of the study.
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


def _write_study(out: Path, study: dict[str, Any]) -> None:
    with whole_file(out / "study.json") as path:
        path.write_text(json.dumps(study, indent=1) + "\n")
