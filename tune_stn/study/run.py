"""One study run: one method on one task at one seed, under one budget, through `tune.run`."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, PopulationBasedTraining

from tune_stn.files import whole_file
from tune_stn.methods import Context, Method
from tune_stn.study.begun import write_begun
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.locks import only_writer
from tune_stn.study.seal import DONE, SCHEDULE, read_done, why_unfit, write_done
from tune_stn.study.state import NAME, known_name
from tune_stn.tasks.task import Task
from tune_stn.training.rules import get_rule
from tune_stn.training.schedule import Schedule
from tune_stn.training.tables import write_parquet
from tune_stn.tuning.budget import BudgetStopper
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.failures import Failures, OnFailure
from tune_stn.tuning.nodes import Watch
from tune_stn.tuning.recording.journal import ERRORS, REPORTS
from tune_stn.tuning.recording.ledger import ENDED
from tune_stn.tuning.recording.recorder import OnReport, Recorder
from tune_stn.tuning.recording.tables import read_own_schedules, read_recorded, report_rows, schedule_rows
from tune_stn.tuning.shared_task import SharedTask, share
from tune_stn.tuning.signature import SEALS, Sealer, check_state
from tune_stn.tuning.slots import InSlots
from tune_stn.tuning.trainable import CHECKPOINT_EPOCHS, STNTrainable

MAX_RESTARTS = 3  # of a trial that was set up once
CHECKPOINTS_PER_TRIAL = 20  # at most; each costs the driver a save of the whole run's state


class Interrupted(Exception):
    """The run was stopped from outside (Ctrl-C) and can be resumed."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to run, and where its state is kept.

    Attributes:
        task: The task, resolved, for planning.
        config: Config of every trial: task, algorithm, seed and settings; the method adds `hp`.
        method: How to search.
        seed: Seed of data, weights and the method's own draws.
        budget: Cost that the run may spend, in plain-epoch equivalents; infinite if `trials` is given.
        trials: Number of trials, or None for what the budget pays.
        folder: State folder of this run.
        followed: The run that this one is made from, where its method follows another; it comes first. Default None.
        begun: What the run is begun with, to be kept in its folder, see `begun_with`. Default None: it is not kept.
    """

    task: Task
    config: Mapping[str, Any]
    method: Method
    seed: int
    budget: float
    trials: int | None
    folder: Path
    followed: Run | None = None
    begun: Mapping[str, Any] | None = None

    @property
    def limit(self) -> float:
        """The `cost_total` that ends the run: its budget, on top of what the run that it follows has spent."""
        record = self.followed.done if self.followed is not None else None
        return self.budget + (record["cost_total"] if record is not None else 0.0)

    @property
    def done(self) -> dict[str, Any] | None:
        """The closing record of a finished run, or None."""
        return read_done(self.folder)


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What a run gives to one that follows it.

    Attributes:
        trial_id: Id of its best trial. Default None: no run is followed.
        schedule: Schedule of that trial. Default None.
        cost_total: What the run has spent with all of its trials, in plain-epoch equivalents. Default 0.
        wall_time_s: Time that this took, in seconds. Default 0.
    """

    trial_id: str | None = None
    schedule: Schedule | None = None
    cost_total: float = 0.0
    wall_time_s: float = 0.0


NO_FOLLOWED = Followed()


class NothingToFollow(Exception):
    """The run that another one is made from has no result."""


def read_followed(run: Run) -> Followed:
    """Best trial, its schedule and the costs of a finished run, from its state folder: so they are there on resume too.

    Raises:
        NothingToFollow: it is not finished, has no finite validation loss, or its schedule cannot be read.
    """
    where = f"the run of {run.method.name} at seed {run.seed}, which it is made from,"
    record = run.done
    if record is None:
        raise NothingToFollow(f"{where} is not finished")
    if unfit := why_unfit(run.folder):
        raise NothingToFollow(f"{where} does not fit its seal: {unfit}")
    reports = report_rows(read_recorded(run.folder / REPORTS), over=True)
    named = reports.assign(task=run.task.name, method=run.method.name, seed=run.seed)
    best = best_so_far(named) if len(named) else named
    if not len(best):
        raise NothingToFollow(f"{where} has no finite validation loss")
    trial_id = str(best["trial_id"].iloc[-1])
    try:
        schedule = Schedule.from_parquet(run.folder / SCHEDULE, trial_id=trial_id)
        schedule.check(run.task.space)
    except (OSError, ValueError) as error:
        raise NothingToFollow(f"{where} has no schedule that can be read: {error}") from error
    return Followed(
        trial_id=trial_id,
        schedule=schedule,
        cost_total=record["cost_total"],
        wall_time_s=float(reports["wall_time_s"].max()),
    )


def execute(
    run: Run,
    cluster: Cluster,
    on_report: OnReport | None = None,
    on_failure: OnFailure | None = None,
    *,
    slots: int = 1,
    watch: Callable[[], None] | None = None,
    retry_failed: bool = False,
    key: bytes | None = None,
) -> dict[str, Any]:
    """Run to the end of the budget, going on where an earlier execution of the same run was cut off.

    A method that does not restore starts again, and its earlier reports are dropped.

    Args:
        run: What to run.
        cluster: Where to run.
        on_report: Called with each new report and the running total of cost.
        on_failure: Called when a trial has failed, as `Failures` does.
        slots: Trials at a time, at most. Default 1.
        watch: Called now and then. Default nothing.
        retry_failed: Whether trials that failed for good go on from their last checkpoints, too.
        key: Key of the user: what Ray Tune keeps of the run is signed with it, and nothing else is unpickled. Default
            None, for neither signatures nor a check of them.

    Returns:
        The closing record: `trials`, `cost_total`, `failures` (trial -> reason), `hopeless` (whether it was given up),
        `peak_memory_bytes` (the most that one of its trials had; None if none reported), `followed` (the trial of
        another run that it was made from, or None); and of the run itself `startup_s` (until its first trial was
        placed, waiting for a slot included), `wall_time_s` (from then on, without the time in which it was off),
        `device_time_s` (of all trials), `slots` and `slots_in_use` (the share of their time in which trials trained or
        evaluated). Tracebacks of trials that failed are files in `errors` of the state folder.

    Raises:
        NothingToFollow: the run that this one is made from has no result; nothing was started or written.
        NodesLost: no node of the cluster has had what a trial needs for some time; what was done is kept.
        Interrupted: The user pressed Ctrl-C; what was done is kept.
        Locked: another process executes the run, and goes on to.
        NotSealed: Ray Tune's state of the run is not signed with the key.
        ValueError: the method cannot search the task's space.
    """
    with only_writer(run.folder):
        return _execute_alone(run, cluster, on_report, on_failure, slots, watch, retry_failed, key)


def _execute_alone(
    run: Run,
    cluster: Cluster,
    on_report: OnReport | None,
    on_failure: OnFailure | None,
    slots: int,
    watch: Callable[[], None] | None,
    retry_failed: bool,
    key: bytes | None,
) -> dict[str, Any]:
    storage = cluster.storage(run.folder / "tune")
    found = read_followed(run.followed) if run.followed is not None else NO_FOLLOWED
    context = Context(run.task, run.budget, run.seed, slots, run.trials, found.schedule)
    plan = run.method.plan(context)
    if run.folder.exists() and (not run.method.restores or (key is not None and unfit_state(run, cluster, key))):
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.begun is not None:
        write_begun(run.folder, run.begun)
    for of_before in (DONE, SCHEDULE):  # where an execution that had ended is gone on with
        (run.folder / of_before).unlink(missing_ok=True)
    name = _own_name(run.folder)
    recorder = _StudyRecorder(
        run.folder,
        hps=list(run.task.space),
        overwrite=True,
        write_every_s=None,
        on_report=on_report,
        cost_before=found.cost_total,
        time_before=found.wall_time_s,
        strict=True,
    )
    tunes = get_rule(run.method.algorithm).tunes
    nodes = Watch(cluster.bundle, cluster.labels)

    def look() -> None:
        nodes.look()
        if watch is not None:
            watch()

    # Where trials pause, what the budget cuts off may wait unsaved: to save it would take another epoch.
    pauses = isinstance(plan.scheduler, (HyperBandScheduler, PopulationBasedTraining))
    stopper = BudgetStopper(recorder, run.limit, save_last=tunes or not pauses, watch=look)
    begun = recorder.cost_total > found.cost_total
    trainable, config = _without_data(run.config, run.folder.name)
    callbacks: list[tune.Callback] = [recorder, Failures(MAX_RESTARTS, run.folder / ERRORS, on_failure)]
    if key is not None:
        callbacks.append(Sealer(run.folder / SEALS, key))
    analysis = tune.run(
        trainable,
        name=name,
        config={
            **{**config, "algorithm": run.method.algorithm, "seed": run.seed, "hp": plan.hp, **plan.config},
            CHECKPOINT_EPOCHS: max(1, context.epochs // CHECKPOINTS_PER_TRIAL),
        },
        num_samples=plan.samples,
        search_alg=plan.search_alg,
        scheduler=InSlots(plan.scheduler, slots),
        stop=stopper,
        callbacks=callbacks,
        storage_path=storage.path,
        storage_filesystem=storage.filesystem,
        resources_per_trial=cluster.per_trial,
        checkpoint_config=tune.CheckpointConfig(num_to_keep=plan.kept_checkpoints, checkpoint_at_end=True),
        max_failures=1,  # `Failures` allows more to those that have been set up
        raise_on_failed_trial=False,
        reuse_actors=True,
        resume=("AUTO+ERRORED" if retry_failed else "AUTO") if begun else False,
        verbose=0,
    )
    trials = analysis.trials
    unfinished = len(trials) < plan.samples or any(trial.status not in ENDED for trial in trials)
    if type(plan.scheduler) is FIFOScheduler:
        # Ctrl-C ends trials as if they were done; where nothing stops them early, they say themselves when they are.
        unfinished |= any(trial.status != "ERROR" and not trial.last_result.get("done") for trial in trials)
    if unfinished and not stopper.stop_all():
        raise Interrupted
    recorded = read_recorded(recorder.path)
    keep_own = tunes or "schedule" in plan.config  # of constants, reports know it all: no need to open 10,000 files
    schedule = schedule_rows(
        recorded, read_own_schedules(trials, advice=f"delete {run.folder} to run it again") if keep_own else None
    )
    with whole_file(run.folder / SCHEDULE) as path:
        write_parquet(schedule, path)
    peaks = [result["peak_memory_bytes"] for trial in trials if "peak_memory_bytes" in (result := trial.last_result)]
    seconds = recorder.seconds()
    busy_s, room_s = seconds.pop("busy_s"), seconds["wall_time_s"] * slots
    record = {
        "trials": recorded.reports["trial_id"].nunique(),
        "cost_total": recorder.cost_total,
        "failures": recorder.failures,
        "hopeless": stopper.hopeless,
        "peak_memory_bytes": max(peaks, default=None),
        "followed": found.trial_id,
        **seconds,
        "slots": slots,
        "slots_in_use": busy_s / room_s if room_s > 0 else None,
    }
    return write_done(run.folder, record, reports=len(recorded.reports), schedule=len(schedule))


def unfit_state(run: Run, cluster: Cluster, key: bytes) -> str:
    """What of Ray Tune's state of a run is damaged; empty if nothing is, or none of it would be unpickled.

    Raises:
        NotSealed: it is not signed with the key.
    """
    if not run.method.restores:
        return ""
    name = known_name(run.folder)
    return check_state(run.folder / SEALS, cluster.storage(run.folder / "tune"), name, key) if name else ""


class _StudyRecorder(Recorder):
    """Its folder is known, wherever a study was moved: Tune need keep no state of it, which would be a pickle."""

    def get_state(self) -> dict[str, Any] | None:
        return None


def _without_data(config: Mapping[str, Any], run: str) -> tuple[type[STNTrainable], dict[str, Any]]:
    """The trainable, and a config without a `Task`: Tune would save that with each trial and result.

    Nor would a config with an object in it survive a crash of the driver: Tune then makes it anew, as the method drew
    it at first, whatever a population has made of it since.
    """
    task = config["task"]
    if not isinstance(task, (Task, SharedTask)):
        return STNTrainable, dict(config)
    rest = {key: value for key, value in config.items() if key != "task"}
    shared = task if isinstance(task, SharedTask) else share(task)
    trainable: type[STNTrainable] = tune.with_parameters(STNTrainable, task=shared)
    # Tune keeps it by its name, for all processes of a study. By one name, trials of a run would get that of another
    # run that has begun since, and with it objects that end with that run's process.
    trainable.__name__ = f"{STNTrainable.__name__}_{run}"
    return trainable, rest


def _own_name(folder: Path) -> str:
    """Under which Tune keeps its state of this run, the same when resumed.

    No other run has it, of this study or another one: runs that begin in the same second write by this name to one
    folder of their Ray's, and a storage may be that of many studies.
    """
    if known := known_name(folder):
        return known
    name = f"{folder.resolve().parent.parent.name}-{folder.name}-{secrets.token_hex(4)}"
    with whole_file(folder / NAME) as partial:
        partial.write_text(name)
    return name
