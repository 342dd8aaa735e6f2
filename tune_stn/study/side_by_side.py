"""The runs of a study side by side: as many as the cluster has slots for, each in a process of its own. Where there is
room for one alone, one after the other."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_stn.study.mend import Mending
from tune_stn.study.progress import Progress
from tune_stn.study.run import Interrupted, NothingToFollow, Run, execute
from tune_stn.tasks.registry import get_task
from tune_stn.tasks.task import Task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.ground import naming_a_lost_disk
from tune_stn.tuning.nodes import NodesLost
from tune_stn.tuning.shared_task import SharedTask, share

LOOK_EVERY_S = 0.5  # at the journals of the runs that go on
STOP_S = 60.0  # for runs to save their state when the study is interrupted
STARTING = os.cpu_count() or 1  # processes of runs at a time: if all began at once, none would be ready before the last
DEATHS = 3  # of a run's process before the study gives the run up
ROUNDS_IN_ORDER = 3  # while more runs wait than these times those that go on, they begin in the order of the study


@dataclass(frozen=True)
class Waiting:
    """A run that has not begun yet.

    Attributes:
        run: The run.
        again: How it is taken up again, where it had ended.
        cost: What it may spend, in plain-epoch equivalents.
    """

    run: Run
    again: Mending | None
    cost: float


class Runner:
    """The process of one run at a time; made an actor of Ray's, on the study's own machine.

    Args:
        task: The task of the runs: its name, or where it is in the object store.
        settings: Settings of the task.
        folder: The study's current directory.
    """

    def __init__(self, task: str | SharedTask, settings: Mapping[str, Any], folder: str) -> None:
        os.chdir(folder)
        self.task = get_task(task.fetch() if isinstance(task, SharedTask) else task, **settings)
        self.given = task

    def pid(self) -> int:
        """The number of this process."""
        return os.getpid()

    def execute(
        self, run: Run, cluster: Cluster, *, slots: int, retry_failed: bool, key: bytes | None
    ) -> dict[str, Any]:
        """As `run.execute`, of a run without its task."""
        with cluster.surroundings(), naming_a_lost_disk(run.folder.parents[1]):
            return execute(self._with_task(run), cluster, slots=slots, retry_failed=retry_failed, key=key)

    def _with_task(self, run: Run) -> Run:
        followed = self._with_task(run.followed) if run.followed is not None else None
        return replace(run, task=self.task, config={**run.config, "task": self.given}, followed=followed)


def _how(error: RayActorError) -> str:
    """How a process died, in what Ray says of it."""
    text = " ".join(str(error).split())
    detail = text.partition("Worker exit detail: ")[2] or text
    return detail.partition(" Some common causes")[0].partition(" There are some")[0]


def without_task(run: Run) -> Run:
    """A run as it is sent to a `Runner`, which has the task: that may be large, or cannot be sent at all."""
    followed = without_task(run.followed) if run.followed is not None else None
    config = {key: value for key, value in run.config.items() if key != "task"}
    return replace(run, task=cast(Task, None), config=config, followed=followed)


def run_side_by_side(
    waiting: Sequence[Waiting],
    *,
    cluster: Cluster,
    slots: int,
    task: str | Task,
    settings: Mapping[str, Any],
    progress: Progress,
    retry_failed: bool,
    key: bytes | None = None,
    when_idle: Callable[[], None] = lambda: None,
) -> str:
    """Execute runs, as many at a time as the cluster has room for. Needs a session.

    Args:
        waiting: The runs, in the order of their study. One that follows another run begins when that has ended.
        cluster: Where to run.
        slots: Trials at a time of each run.
        task: The task of the runs, as the study was given it.
        settings: Settings of the task.
        progress: Told what becomes of them.
        retry_failed: Whether failed trials of runs that are gone on with go on from their last checkpoints.
        key: Key of the user, as for `run.execute`: the process of a run may be another user's. Default None.
        when_idle: Called once when no run waits any more and the first has ended since. Default nothing.

    Returns:
        Why runs were not gone on with; empty if all have ended.

    Raises:
        Interrupted: Somebody pressed Ctrl-C; what was done is kept.
        GroundLost: The study's files cannot be written, or Ray is gone.
        ValueError: The cluster has no room for one run's slots.
    """
    if not waiting:
        return ""
    room = cluster.slots()
    if room < slots:
        raise ValueError(
            f"slots_per_run={slots}: there is room for {room} at a time; lower it, or give the study more room"
        )
    number = min(room // slots, len(waiting))
    if number == 1:
        return _one_after_the_other(waiting, cluster, progress, slots=slots, retry_failed=retry_failed, key=key)
    given = share(task) if isinstance(task, Task) else task
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=0)(Runner).options(scheduling_strategy=here)
    pool = Pool(
        waiting,
        number,
        progress,
        new_runner=partial(actor.remote, given, dict(settings), os.getcwd()),
        how={"cluster": cluster, "slots": slots, "retry_failed": retry_failed, "key": key},
        when_idle=when_idle,
    )
    return pool.work()


def _one_after_the_other(
    waiting: Sequence[Waiting],
    cluster: Cluster,
    progress: Progress,
    *,
    slots: int,
    retry_failed: bool,
    key: bytes | None,
) -> str:
    """In this process, which has nothing else to do meanwhile."""
    for one in waiting:
        begin(one, progress)
        try:
            record = execute(one.run, cluster, slots=slots, watch=progress.look, retry_failed=retry_failed, key=key)
        except NothingToFollow as error:
            progress.without_result(one.run, str(error))
        except NodesLost as error:
            progress.without_result(one.run, str(error))
            return f"{error}; "  # the others would fare no better
        else:
            progress.finished(one.run, record)
    return ""


def begin(one: Waiting, progress: Progress) -> None:
    """Say that a run begins, and clear its place where it begins anew."""
    if one.again is not None and one.again.anew:
        shutil.rmtree(one.run.folder)
    progress.started(one.run, one.again.why if one.again is not None else "")


class Pool:
    """Some processes that execute one run after the other.

    Args:
        waiting: The runs, in the order of their study.
        size: Runs at a time.
        progress: Told what becomes of them.
        new_runner: Starts a process.
        how: Further arguments of `Runner.execute`.
        when_idle: Called once, when the first process has nothing left to do.
    """

    def __init__(
        self,
        waiting: Sequence[Waiting],
        size: int,
        progress: Progress,
        *,
        new_runner: Callable[[], Any],
        how: Mapping[str, Any],
        when_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.waiting = list(waiting)
        self.size = size
        self.progress = progress
        self.new_runner = new_runner
        self.how = how
        self.when_idle: Callable[[], None] | None = when_idle
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Run]] = {}  # by the reference to the closing record
        self.pids: dict[Any, Any] = {}  # of the runners, references
        self.starting: list[Any] = []  # of those that are not known to be there yet
        self.deaths: Counter[Path] = Counter()
        self.costs = {one.run.folder: one.cost for one in waiting}
        self.ended: dict[str, list[tuple[float, float]]] = defaultdict(list)  # by method: what a run cost, and seconds

    def work(self) -> str:
        """Execute all runs; why some were not gone on with, or nothing."""
        try:
            while self.waiting or self.busy:
                self._hand_out()
                done, _ = ray.wait([*self.busy, *self.starting], timeout=LOOK_EVERY_S)
                self.progress.look()
                for one in done:
                    if one in self.busy:
                        self._end(one, *self.busy.pop(one))
                self.starting = [one for one in self.starting if one not in done]
        except NodesLost as error:
            self._interrupt()
            return f"{error}; "
        except KeyboardInterrupt:
            self._interrupt()
            raise Interrupted from None
        except BaseException:
            self._interrupt()
            raise
        for runner in self.idle:
            ray.kill(runner)
        return ""

    def _hand_out(self) -> None:
        """Begin as many runs as there is room for; end the processes for which none is left."""
        while len(self.busy) < self.size and (one := self._next()) is not None:
            if not self.idle and len(self.starting) >= STARTING:
                break
            self.waiting.remove(one)
            begin(one, self.progress)
            self._execute(one.run)
        if self.idle and not self.waiting and self.when_idle is not None:
            self.when_idle()
            self.when_idle = None
        while self.idle and not self.waiting:
            ray.kill(self.idle.pop())

    def _next(self) -> Waiting | None:
        """The next run of the study; near its end the longest, so that nothing waits for one that began last.

        All methods at a seed come before the next seed: an unfinished study is a comparison, too. A run is as long as
        those that follow it make it.
        """
        unfinished = {one.run.folder for one in self.waiting} | {run.folder for _, run in self.busy.values()}
        able = [one for one in self.waiting if one.run.followed is None or one.run.followed.folder not in unfinished]
        if len(self.waiting) > ROUNDS_IN_ORDER * self.size:
            return next(iter(able), None)
        after: dict[Path, float] = defaultdict(float)
        for one in self.waiting:
            if one.run.followed is not None:
                after[one.run.followed.folder] = max(after[one.run.followed.folder], self._length(one))
        return max(able, key=lambda one: self._length(one) + after[one.run.folder], default=None)

    def _length(self, one: Waiting) -> float:
        """The seconds that a run is to take, as those of its method did; in proportion to its cost where none ended."""
        known = self.ended.get(one.run.method.name)
        if known is not None:
            return sum(seconds for _, seconds in known) / len(known)
        costs, seconds = map(sum, zip(*chain.from_iterable(self.ended.values()), strict=True)) if self.ended else (1, 1)
        return one.cost * seconds / costs

    def _execute(self, run: Run) -> None:
        if not self.idle:
            self.idle.append(self.new_runner())
            self.pids[self.idle[-1]] = self.idle[-1].pid.remote()
            self.starting.append(self.pids[self.idle[-1]])
        runner = self.idle.pop()
        self.busy[runner.execute.remote(without_task(run), **self.how)] = runner, run

    def _end(self, reference: Any, runner: Any, run: Run) -> None:
        try:
            record = ray.get(reference)
        except RayActorError as error:
            self.deaths[run.folder] += 1
            if self.deaths[run.folder] < DEATHS:
                self.progress.died(run)
                self._execute(run)
            else:
                self.progress.without_result(run, f"its process died {DEATHS} times, the last time: {_how(error)}")
            return
        except RayTaskError as error:
            self.idle.append(runner)
            if not isinstance(error.cause, (NothingToFollow, NodesLost)):
                raise error.cause from error
            self.progress.without_result(run, str(error.cause))
            if isinstance(error.cause, NodesLost):
                raise error.cause from error  # the others would fare no better
        else:
            self.progress.finished(run, record)
            self.ended[run.method.name].append((self.costs[run.folder], record["wall_time_s"]))
            self.idle.append(runner)

    def _interrupt(self) -> None:
        """Have the runs that go on save their state, as Ctrl-C has Tune do it, and end their processes."""
        runners = [runner for runner, _ in self.busy.values()]
        for runner in runners:
            try:
                os.kill(ray.get(self.pids[runner], timeout=STOP_S), signal.SIGUSR1)
            except (RayError, ProcessLookupError):
                continue  # it has not begun, or is gone
        if self.busy:
            ray.wait(list(self.busy), num_returns=len(self.busy), timeout=STOP_S)
        for runner in [*runners, *self.idle]:
            ray.kill(runner)
