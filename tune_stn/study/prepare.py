"""What a study is to run, checked and rehearsed: all of it happens before Ray starts, and most before it is loaded."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_stn.methods import Context, Method, in_order
from tune_stn.study.arguments import check_directory
from tune_stn.study.checks import check_hyper_steps, check_later_data
from tune_stn.study.remarks import before, conversion_entry
from tune_stn.tasks.arguments import check_splits
from tune_stn.tasks.own_code import own_code
from tune_stn.tasks.registry import get_task, look_in
from tune_stn.tasks.task import Task
from tune_stn.training.rehearsal import rehearse
from tune_stn.tuning.cluster import Cluster, is_connected
from tune_stn.tuning.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A study that can begin: its arguments, of which everything that can be known before it does is found right.

    Attributes:
        given: The task as it was named, or the object.
        task: The task with its settings.
        methods: Methods in the order in which they were asked for.
        ordered: Methods in the order in which they run at a seed.
        seeds: Seeds of the runs.
        budget: Cost of each run, in plain-epoch equivalents; may be infinite where `trials` is given.
        trials: Number of trials of each run; None for as many as the budget pays.
        out: Directory of the study.
        resume: Whether a study that is there is gone on with.
        retry_failed: Whether failed trials of it are run again.
        settings: Settings of the task and its training.
        cluster: Where to run.
        slots_per_run: Number of trials at a time of each run.
        costs: Method -> what a run of it may spend if none of its trials ends early, in plain-epoch equivalents.
        storage: Storage of Ray Tune's checkpoints.
        conversion: Algorithm -> what of the network responds, as `study.json` has it; empty if not rehearsed.
        remarks: What is worth a second look, a sentence each.
    """

    given: str | Task
    task: Task
    methods: Sequence[Method]
    ordered: Sequence[Method]
    seeds: Sequence[int]
    budget: float
    trials: int | None
    out: Path
    resume: bool
    retry_failed: bool
    settings: Mapping[str, Any]
    cluster: Cluster
    slots_per_run: int
    costs: Mapping[str, float]
    storage: Storage
    conversion: Mapping[str, Any]
    remarks: Sequence[str]


def prepare(
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
    slots_per_run: int = 1,
    rehearsal: bool = True,
    retry_failed: bool = False,
) -> Prepared:
    """Find out what would fail: be it a method, data, a step of training, or a way to search the space.

    Arguments are those of `run_study`. Nothing is written, and no Ray is started.

    Raises:
        ValueError: an argument is not accepted, or the rehearsal failed.
    """
    check_directory(out, resume=resume, retry_failed=retry_failed)
    if slots_per_run < 1:
        raise ValueError(f"slots_per_run={slots_per_run}: accepted is an integer of 1 or more")
    cluster.check_machine()
    ordered = in_order(methods)
    if cluster.working_dir is not None:
        look_in(Path(cluster.working_dir))
    resolved = get_task(task, **settings)
    began = time.monotonic()
    with own_code("the data", resolved.name):
        splits = check_splits(resolved.name, resolved.data(seeds[0]))
    took = time.monotonic() - began
    steps_per_epoch = splits.train.steps(resolved.training.batch_size)
    for method in methods:
        check_hyper_steps(resolved, method, steps_per_epoch, budget)
        if method.schedule is not None:
            method.schedule.check(resolved.space)
    storage = cluster.storage(out / "state")
    conversion: dict[str, Any] = {}
    remarks: list[str] = []
    if rehearsal:
        connected = is_connected()
        schedule = next((method.schedule for method in methods if method.schedule is not None), None)
        check_later_data(resolved, seeds[1:], took)
        found = rehearse(resolved, [method.algorithm for method in methods], splits, seed=seeds[0], schedule=schedule)
        conversion = {algorithm: conversion_entry(one) for algorithm, one in found.conversions.items()}
        remarks = [*found.remarks, *before(resolved, splits)]
        if is_connected() and not connected:
            sys.modules["ray"].shutdown()  # code of the task's had asked for Ray, which connects to what it finds
    costs = dict.fromkeys((method.name for method in methods), float(resolved.training.epochs))
    for method in methods:  # last, for searchers and schedulers are Ray's
        if method.follows is None:  # the others follow a schedule in this very space, with one trial
            plan = method.plan(Context(resolved, budget, seeds[0], slots_per_run, trials))
            costs[method.name] = min(budget, float(plan.samples * resolved.training.epochs))
    return Prepared(
        given=task,
        task=resolved,
        methods=methods,
        ordered=ordered,
        seeds=seeds,
        budget=budget,
        trials=trials,
        out=out,
        resume=resume,
        retry_failed=retry_failed,
        settings=settings,
        cluster=cluster,
        slots_per_run=slots_per_run,
        costs=costs,
        storage=storage,
        conversion=conversion,
        remarks=remarks,
    )
