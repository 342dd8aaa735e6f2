"""One study run: one method on one task at one seed, under one budget, through `tune.run`."""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from tune_stn.methods import Context, Method
from tune_stn.tasks.task import Task
from tune_stn.training.rules import get_rule
from tune_stn.training.tables import whole_file
from tune_stn.tuning.budget import BudgetStopper
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.journal import REPORTS, read_reports
from tune_stn.tuning.recorded import read_own_schedules, read_recorded, schedule_rows
from tune_stn.tuning.recorder import ENDED, OnReport, Recorder
from tune_stn.tuning.trainable import STNTrainable

SCHEDULE, DONE = "schedule.parquet", "done.json"
MAX_RESTARTS = 3  # of a trial whose process died
CHECKPOINTS_PER_TRIAL = 20


class Interrupted(Exception):
    """The run was stopped from outside (Ctrl-C) and can be resumed."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to run, and where its state is kept.

    Attributes:
        task: resolved, for planning.
        config: of every trial: task, algorithm, seed and settings; the method adds `hp`.
        method: how to search.
        seed: of data, weights and the method's own draws.
        budget: in plain-epoch equivalents; infinite if `trials` is given.
        trials: number of trials, or None for what the budget pays.
        folder: state folder of this run.
    """

    task: Task
    config: Mapping[str, Any]
    method: Method
    seed: int
    budget: float
    trials: int | None
    folder: Path

    @property
    def done(self) -> dict[str, Any] | None:
        """The closing record of a finished run, or None."""
        path = self.folder / DONE
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def best_before(self) -> float:
        """The best validation loss that an earlier execution reported and this one goes on from; infinite without."""
        losses = [report["val_loss"] for report in read_reports(self.folder / REPORTS)] if self.method.restores else []
        return min((loss for loss in losses if math.isfinite(loss)), default=math.inf)


def execute(run: Run, cluster: Cluster, on_report: OnReport | None = None) -> dict[str, Any]:
    """Run to the end of the budget, going on where an earlier execution of the same run was cut off.

    A method that does not restore starts again, and its earlier reports are dropped.

    Returns:
        The closing record: `trials`, `cost_total`, `failures` (trial -> reason), `peak_memory_bytes` (the most that one
        of its trials had; None if none reported).

    Raises:
        Interrupted: somebody pressed Ctrl-C; what was done is kept.
        ValueError: the method cannot search the task's space.
    """
    storage = cluster.storage(run.folder / "tune")
    context = Context(run.task, run.budget, run.seed, cluster.slots(), run.trials)
    plan = run.method.plan(context)
    if run.folder.exists() and not run.method.restores:
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    name = _own_name(run.folder) if cluster.storage_path else "run"
    recorder = Recorder(run.folder, hps=list(run.task.space), overwrite=True, write_every_s=None, on_report=on_report)
    tunes = get_rule(run.method.algorithm).tunes
    stopper = BudgetStopper(recorder, run.budget, save_last=tunes)
    begun = recorder.cost_total > 0
    analysis = tune.run(
        STNTrainable,
        name=name,
        config={**run.config, "algorithm": run.method.algorithm, "seed": run.seed, "hp": plan.hp, **plan.config},
        num_samples=plan.samples,
        search_alg=plan.search_alg,
        scheduler=plan.scheduler,
        stop=stopper,
        callbacks=[recorder],
        storage_path=storage.path,
        storage_filesystem=storage.filesystem,
        resources_per_trial=cluster.per_trial,
        checkpoint_config=tune.CheckpointConfig(
            num_to_keep=plan.kept_checkpoints,
            checkpoint_frequency=max(1, context.epochs // CHECKPOINTS_PER_TRIAL),
            checkpoint_at_end=True,
        ),
        max_failures=MAX_RESTARTS,
        raise_on_failed_trial=False,
        # Tune gives a trial up, without starting it again, if the process it takes over from another is found dead.
        # Where trials are few and long, a process for each costs next to nothing.
        reuse_actors=not (tunes and type(plan.scheduler) is FIFOScheduler),
        resume="AUTO" if begun else False,
        verbose=0,
    )
    trials = analysis.trials
    unfinished = len(trials) < plan.samples or any(trial.status not in ENDED for trial in trials)
    if unfinished and not stopper.stop_all():
        raise Interrupted
    recorded = read_recorded(recorder.path)
    schedule = schedule_rows(recorded, read_own_schedules(trials))
    schedule.to_parquet(run.folder / SCHEDULE, index=False)
    peaks = [result["peak_memory_bytes"] for trial in trials if "peak_memory_bytes" in (result := trial.last_result)]
    record = {
        "trials": recorded.reports["trial_id"].nunique(),
        "cost_total": recorder.cost_total,
        "failures": recorder.failures,
        "hopeless": stopper.hopeless,
        "peak_memory_bytes": max(peaks, default=None),
    }
    with whole_file(run.folder / DONE) as path:
        path.write_text(json.dumps(record, indent=1))
    return record


def _own_name(folder: Path) -> str:
    """Under which Tune keeps its state of this run in a storage that many studies share; the same when resumed."""
    path = folder / "name.txt"
    if not path.exists():
        with whole_file(path) as partial:
            partial.write_text(f"{folder.resolve().parent.parent.name}-{folder.name}-{secrets.token_hex(4)}")
    return path.read_text()
