"""One study run: one method on one task at one seed, under one budget, through `tune.run`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from ray import tune

from tune_stn.methods import Context, Method
from tune_stn.study.tables import whole_file
from tune_stn.tasks.task import Task
from tune_stn.training.rules import get_rule
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recorder import FINISHED, BudgetStopper, OnReport, Recorder, read_reports
from tune_stn.tuning.trainable import SCHEDULE_FILE, STNTrainable

REPORTS, SCHEDULE, DONE = "reports.jsonl", "schedule.parquet", "done.json"
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


def execute(run: Run, cluster: Cluster, on_report: OnReport | None = None) -> dict[str, Any]:
    """Run to the end of the budget, going on where an earlier execution of the same run was cut off.

    A method that does not restore starts again, and its earlier reports are dropped.

    Returns:
        The closing record: `trials`, `cost_total`, `failures` (trial -> reason).

    Raises:
        Interrupted: somebody pressed Ctrl-C; what was done is kept.
        ValueError: the method cannot search the task's space.
    """
    storage = cluster.storage_path or str(run.folder.resolve() / "tune")
    # Tune keeps its own state of a run under this name; a shared storage path holds many studies.
    name = f"{run.folder.resolve().parent.parent.name}-{run.folder.name}" if cluster.storage_path else "run"
    context = Context(run.task, run.budget, run.seed, cluster.slots(), run.trials)
    plan = run.method.plan(context)
    if run.folder.exists() and not run.method.restores:
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(run.folder / REPORTS, on_report)
    stopper = BudgetStopper(recorder, run.budget, save_last=get_rule(run.method.algorithm).tunes)
    begun = recorder.cost_total > 0
    analysis = tune.run(
        STNTrainable,
        name=name,
        config={**run.config, "algorithm": run.method.algorithm, "seed": run.seed, "hp": plan.hp},
        num_samples=plan.samples,
        search_alg=plan.search_alg,
        scheduler=plan.scheduler,
        stop=stopper,
        callbacks=[recorder],
        storage_path=storage,
        resources_per_trial=cluster.resources,
        checkpoint_config=tune.CheckpointConfig(
            num_to_keep=plan.kept_checkpoints,
            checkpoint_frequency=max(1, context.epochs // CHECKPOINTS_PER_TRIAL),
            checkpoint_at_end=True,
        ),
        max_failures=MAX_RESTARTS,
        raise_on_failed_trial=False,
        reuse_actors=True,
        resume="AUTO" if begun else False,
        verbose=0,
    )
    trials = analysis.trials
    unfinished = len(trials) < plan.samples or any(trial.status not in FINISHED for trial in trials)
    if unfinished and not stopper.stop_all():
        raise Interrupted
    schedule = _schedule(run, trials)
    schedule.to_parquet(run.folder / SCHEDULE, index=False)
    record = {
        "trials": len({report["trial_id"] for report in read_reports(run.folder / REPORTS)}),
        "cost_total": recorder.cost_total,
        "failures": recorder.failures,
        "hopeless": stopper.hopeless,
    }
    with whole_file(run.folder / DONE) as path:
        path.write_text(json.dumps(record, indent=1))
    return record


def _schedule(run: Run, trials: list[Any]) -> pd.DataFrame:
    """The run's schedule: of self-tuning trials from their last checkpoints, of others from their reports."""
    columns = ["trial_id", "parent_trial_id", "step", "epoch", "hp", "value", "raw", "scale", "source"]
    parts = [pd.DataFrame(columns=columns)]
    if get_rule(run.method.algorithm).tunes:
        for trial in trials:
            if trial.checkpoint is not None:
                with trial.checkpoint.as_directory() as directory:
                    part = pq.read_table(Path(directory) / SCHEDULE_FILE).to_pandas()
                parts.append(part.assign(trial_id=trial.trial_id, parent_trial_id=None))
    else:
        parts.append(pd.DataFrame(_rows_from_reports(run.folder / REPORTS), columns=columns))
    return pd.concat([part for part in parts if len(part)] or parts)[columns]


def _rows_from_reports(path: Path) -> list[dict[str, Any]]:
    """A row for each hyperparameter at a trial's start, and at each copy of another trial.

    After a copy, a value that the parent had at the time was exploited, another one explored.
    """
    rows: list[dict[str, Any]] = []
    segments: dict[str, str] = {}
    latest: dict[str, dict[str, float]] = {}
    for report in read_reports(path):
        trial, segment, parent = report["trial_id"], report["segment"], report["parent_trial_id"]
        values = {key.removeprefix("hp/"): value for key, value in report.items() if key.startswith("hp/")}
        if segments.get(trial) != segment:
            segments[trial] = segment
            for hp, value in values.items():
                copied = latest.get(parent, {}).get(hp) == value
                source = ("exploit" if copied else "explore") if segment else "fixed"
                # A report closes its epoch; the values held from its beginning.
                row = {"trial_id": trial, "parent_trial_id": parent or None, "epoch": report["epoch"] - 1, "hp": hp}
                steps_an_epoch = report["step"] // report["epoch"]
                rows.append(
                    row
                    | {"step": report["step"] - steps_an_epoch, "value": value, "source": source}
                    | {"raw": None, "scale": None}
                )
        latest[trial] = values
    return rows
