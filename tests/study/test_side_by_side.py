"""Runs side by side: their order, what becomes of the others when one fails, and that results do not depend on it."""

from __future__ import annotations

import math
import os
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from tune_stn import compare
from tune_stn.methods import get_method
from tune_stn.study import side_by_side
from tune_stn.study.mend import Mending
from tune_stn.study.progress import Progress
from tune_stn.study.results import Results
from tune_stn.study.run import Interrupted, NothingToFollow, Run
from tune_stn.study.side_by_side import DEATHS, Pool, Waiting, begin, run_side_by_side, without_task
from tune_stn.tasks import Task, get_task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.ground import GroundLost
from tune_stn.tuning.nodes import NodesLost

RECORD = {"trials": 1, "cost_total": 2.0, "failures": {}, "hopeless": False, "peak_memory_bytes": None}


def make_run(place: Path, method: str, seed: int = 0, followed: Run | None = None) -> Run:
    folder = place / "state" / f"{method}-seed{seed}"
    task = get_task("ridge")
    return Run(
        task=task, config={"task": task}, method=get_method(method), seed=seed, budget=9.0, trials=None, folder=folder,
        followed=followed,
    )  # fmt: skip


def waiting(place: Path, costs: Mapping[str, float], seeds: int = 1) -> list[Waiting]:
    """All methods at a seed before the next seed, and what follows `auto` behind it."""
    found = []
    for seed in range(seeds):
        runs: dict[str | None, Run] = {}
        for name, cost in costs.items():
            runs[name] = make_run(place, name, seed, runs.get(get_method(name).follows))
            found.append(Waiting(runs[name], None, cost))
    return found


class FakeRay:
    """Runners whose runs take as long as they cost; time passes when somebody waits.

    Attributes:
        took: seconds of runs that take another time, by method.
        outcomes: of runs by name and seed, one after the other: what is raised, or a closing record when there is none.
        began: runs, in order.
        ended: runs, in order, with the time.
        alive: processes of runners.
        starting: how many of them were not there yet, whenever one came to be.
        killed: those that were ended.
        interrupted: those that were asked to save their state.
    """

    def __init__(self, waiting: Sequence[Waiting]) -> None:
        self.costs = {one.run.folder: one.cost for one in waiting}
        self.outcomes: dict[str, list[BaseException]] = defaultdict(list)
        self.now = 0.0
        self.began: list[str] = []
        self.ended: list[tuple[str, float]] = []
        self.killed: list[int] = []
        self.interrupted: list[int] = []
        self.alive = 0
        self.starting: list[int] = []
        self.took: dict[str, float] = {}
        self.seconds: dict[Any, float] = {}
        self.ends: dict[Any, float] = {}
        self.names: dict[Any, str] = {}

    def new_runner(self) -> Any:
        self.alive += 1
        number = self.alive

        class Remote:
            def __init__(self, function: Any) -> None:
                self.remote = function

        class Runner:
            pid = Remote(lambda: ("pid", number))
            execute = Remote(partial(self._execute, number))

        runner = Runner()
        runner.number = number  # type: ignore[attr-defined]
        return runner

    def _execute(self, number: int, run: Run, **sent: Any) -> Any:
        assert sent == {"slots": 1}
        assert run.task is None
        assert "task" not in run.config
        name = f"{run.method.name}{run.seed}"
        self.began.append(name)
        reference = ("run", name, len(self.began))
        self.seconds[reference] = self.took.get(run.method.name, self.costs[run.folder])
        self.ends[reference] = self.now + self.seconds[reference]
        return reference

    def wait(self, references: list[Any], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        if ready := [one for one in references if one[0] == "pid"]:
            self.starting.append(len(ready))
            return ready[:1], [one for one in references if one != ready[0]]
        done = sorted(references, key=lambda one: self.ends[one])[:num_returns]
        outcomes = self.outcomes[done[0][1]]
        if outcomes and isinstance(outcomes[0], KeyboardInterrupt):
            raise outcomes.pop()
        self.now = max(self.ends[one] for one in done)
        return done, [one for one in references if one not in done]

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if reference[0] == "pid":
            return reference[1]
        name = reference[1]
        if self.outcomes[name]:
            raise self.outcomes[name].pop(0)
        self.ended.append((name, self.now))
        return RECORD | {"wall_time_s": self.seconds[reference]}

    def kill(self, runner: Any) -> None:
        self.killed.append(runner.number)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a fake of the runs that wait, and stands it in the place of Ray."""

    def make(waiting: Sequence[Waiting]) -> FakeRay:
        found = FakeRay(waiting)
        for name in ("wait", "get", "kill"):
            monkeypatch.setattr(side_by_side.ray, name, getattr(found, name))
        monkeypatch.setattr(side_by_side.os, "kill", lambda pid, number: found.interrupted.append(pid))
        return found

    return make


def pool(waiting: Sequence[Waiting], size: int, ray: FakeRay, said: list[str]) -> Pool:
    progress = Progress(said.append, total=len(waiting))
    return Pool(waiting, size, progress, new_runner=ray.new_runner, how={"slots": 1})


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("execute", "Traceback ...", cause)


def test_the_study_is_told_once_when_the_first_process_has_nothing_left_to_do(
    tmp_path: Path, fake: Any, said: list[str]
) -> None:
    runs = waiting(tmp_path, {"fixed": 1.0, "random": 2.0, "stn": 3.0})
    ray, told = fake(runs), []
    progress = Progress(said.append, total=3)
    how = {"slots": 1}
    Pool(runs, 2, progress, new_runner=ray.new_runner, how=how, when_idle=lambda: told.append(len(ray.ended))).work()
    assert told == [2]


# Order --------------------------------------------------------------------------------------------------------------


def test_the_order_of_the_study_and_near_its_end_the_longest_first(tmp_path: Path, fake: Any, said: list[str]) -> None:
    """With two lanes, the last six choose by cost: the long one is not left for the end."""
    runs = waiting(tmp_path, {"fixed": 1.0, "random": 2.0, "stn": 8.0}, seeds=3)
    ray = fake(runs)
    assert pool(runs, 2, ray, said).work() == ""
    assert ray.began[:3] == ["fixed0", "random0", "stn0"]
    assert ray.began[3:] == ["stn1", "stn2", "random1", "random2", "fixed1", "fixed2"]
    assert sorted(name for name, _ in ray.ended) == sorted(ray.began)
    assert ray.alive == 2
    assert sorted(ray.killed) == [1, 2]


def test_the_longest_are_those_that_took_longest(tmp_path: Path, fake: Any, said: list[str]) -> None:
    """Whatever they may cost; one of which none has ended is taken to be as fast for its cost as all others."""
    runs = waiting(tmp_path, {"fixed": 5.0, "random": 5.0, "stn": 5.0}, seeds=3)
    ray = fake(runs)
    ray.took = {"fixed": 1.0, "random": 2.0, "stn": 50.0}
    pool(runs, 1, ray, said).work()
    assert ray.began[:6] == ["fixed0", "random0", "stn0", "fixed1", "random1", "stn1"]
    assert ray.began[6:] == ["stn2", "random2", "fixed2"]
    more = waiting(tmp_path, {"fixed": 9.0, "random": 3.0, "stn": 6.0, "auto": 4.0})[1:]
    own = pool(more, 1, ray, said)
    own.ended["fixed"] = [(8.0, 2.0)]
    own.ended["random"] = [(3.0, 2.0), (1.0, 4.0)]
    assert [own._length(one) for one in more] == [3.0, 6.0 * 8 / 12, 4.0 * 8 / 12]


def test_a_run_that_others_follow_is_as_long_as_it_makes_them_wait(tmp_path: Path, fake: Any, said: list[str]) -> None:
    runs = waiting(tmp_path, {"random": 6.0, "auto": 4.0, "fixed": 5.0, "replayed": 3.0, "last-values": 1.0})
    ray = fake(runs)
    pool(runs, 2, ray, said).work()
    assert ray.began == ["auto0", "random0", "fixed0", "replayed0", "last-values0"]


@pytest.mark.parametrize("lanes", [2, 4])
def test_a_follower_begins_when_its_source_has_ended(tmp_path: Path, fake: Any, said: list[str], lanes: int) -> None:
    """Though it is the longest, and other lanes are empty meanwhile."""
    runs = waiting(tmp_path, {"auto": 5.0, "fixed": 1.0, "replayed": 9.0, "last-values": 9.0})
    ray = fake(runs)
    pool(runs, lanes, ray, said).work()
    assert ray.began[:2] == ["auto0", "fixed0"]
    assert dict(ray.ended)["auto0"] == 5.0
    assert dict(ray.ended)["replayed0"] == dict(ray.ended)["last-values0"] == 14.0


def test_a_few_processes_start_at_a_time(
    tmp_path: Path, fake: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all did, none would be ready before the last."""
    monkeypatch.setattr(side_by_side, "STARTING", 2)
    runs = waiting(tmp_path, {"fixed": 9.0, "random": 9.0}, seeds=4)
    ray = fake(runs)
    assert pool(runs, 5, ray, said).work() == ""
    assert ray.starting == [2, 2, 2, 2, 1]
    assert ray.alive == 5
    assert len(ray.ended) == 8


def test_a_source_without_a_result_is_waited_for_no_longer(tmp_path: Path, fake: Any, said: list[str]) -> None:
    runs = waiting(tmp_path, {"auto": 5.0, "replayed": 4.0})
    ray = fake(runs)
    ray.outcomes["auto0"] = [ActorDiedError()] * DEATHS
    ray.outcomes["replayed0"] = [task_error(NothingToFollow("the run of auto is not finished"))]
    assert pool(runs, 2, ray, said).work() == ""
    assert said[-1] == "[2/2] replayed, seed 0: has no result: the run of auto is not finished"


def test_what_is_sent_has_no_task(tmp_path: Path) -> None:
    auto = make_run(tmp_path, "auto")
    sent = without_task(make_run(tmp_path, "replayed", followed=auto))
    assert sent.task is None
    assert sent.followed is not None
    assert sent.followed.task is None
    assert "task" not in {**sent.config, **sent.followed.config}
    assert auto.task is not None


def test_a_run_that_begins_anew_has_an_empty_place(tmp_path: Path, said: list[str]) -> None:
    run = make_run(tmp_path, "random")
    for anew in (False, True):
        run.folder.mkdir(parents=True, exist_ok=True)
        begin(Waiting(run, Mending("it had no result", anew=anew), 1.0), Progress(said.append, total=1))
        assert run.folder.exists() != anew
    assert all(line.endswith("taken up again, for it had no result") for line in said)


# What goes wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaths", range(1, DEATHS + 1))
def test_a_run_whose_process_dies_goes_on_in_another_one(
    tmp_path: Path, fake: Any, said: list[str], deaths: int
) -> None:
    """And is given up at the third death; the other run knows nothing of it."""
    runs = waiting(tmp_path, {"random": 2.0, "fixed": 9.0})
    ray = fake(runs)
    words = "The actor died.\n\tWorker exit detail: out of memory. Some common causes include: (1) that."
    ray.outcomes["random0"] = [RayActorError(error_msg=words)] * deaths
    assert pool(runs, 2, ray, said).work() == ""
    given_up = deaths == DEATHS
    assert ray.began.count("random0") == min(deaths + 1, DEATHS)
    assert ray.began.count("fixed0") == 1
    assert sum("its process died; the run goes on from there" in line for line in said) == min(deaths, DEATHS - 1)
    assert sorted(name for name, _ in ray.ended) == (["fixed0"] if given_up else ["fixed0", "random0"])
    reason = "its process died 3 times, the last time: out of memory."
    assert any(line.endswith(f"has no result: {reason}") for line in said) == given_up


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (task_error(NodesLost("no node")), None),
        (task_error(GroundLost("no room")), GroundLost),
        (task_error(ZeroDivisionError("a bug")), ZeroDivisionError),
        (KeyboardInterrupt(), Interrupted),
    ],
)
def test_what_ends_the_study_has_the_other_runs_save_their_state(
    tmp_path: Path, fake: Any, said: list[str], error: BaseException, raised: type[Exception] | None
) -> None:
    runs = waiting(tmp_path, dict.fromkeys(("random", "fixed", "stn", "auto"), 9.0))
    ray = fake(runs)
    ray.costs[runs[0].run.folder] = 2.0
    ray.outcomes["random0"] = [error]
    work = pool(runs, 3, ray, said).work
    if raised is None:
        assert work() == "no node; "
        assert any(line.endswith("random, seed 0: has no result: no node") for line in said)
    else:
        with pytest.raises(raised):
            work()
    assert ray.began == ["random0", "fixed0", "stn0"]
    assert ray.interrupted == ([1, 2, 3] if raised is Interrupted else [2, 3])
    assert sorted(ray.killed) == [1, 2, 3]
    assert ray.now == 9.0  # they were waited for


def test_ctrl_c_while_a_process_starts_or_is_gone_harms_nothing(
    tmp_path: Path, fake: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = waiting(tmp_path, {"random": 2.0, "fixed": 9.0})
    ray = fake(runs)
    ray.outcomes["random0"] = [KeyboardInterrupt()]

    def gone(pid: int, number: int) -> None:
        assert number == signal.SIGUSR1
        raise ProcessLookupError

    monkeypatch.setattr(side_by_side.os, "kill", gone)
    with pytest.raises(Interrupted):
        pool(runs, 2, ray, said).work()
    assert sorted(ray.killed) == [1, 2]


@pytest.mark.parametrize(("slots", "in_all"), [(1, 1), (2, 3), (3, 3)])
def test_where_there_is_room_for_one_run_it_is_executed_here(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, slots: int, in_all: int
) -> None:
    """With no process of its own; a run without a result does not end the study, lost nodes do."""
    executed: list[tuple[str, int, int]] = []

    def execute(run: Run, cluster: Cluster, *, slots: int, **_: Any) -> dict[str, Any]:
        executed.append((run.method.name, slots, os.getpid()))
        if run.method.name == "replayed":
            raise NothingToFollow("nothing")
        if run.method.name == "random":
            raise NodesLost("no node")
        return RECORD

    monkeypatch.setattr(side_by_side, "execute", execute)
    monkeypatch.setattr(Cluster, "slots", lambda _: in_all)
    runs = waiting(tmp_path, {"fixed": 1.0, "auto": 1.0, "replayed": 9.0, "random": 1.0, "stn": 1.0})
    stopped = run_side_by_side(
        runs, cluster=Cluster(), slots=slots, task="ridge", settings={}, retry_failed=False,
        progress=Progress(said.append, total=5),
    )  # fmt: skip
    assert stopped == "no node; "
    assert executed == [(name, slots, os.getpid()) for name in ("fixed", "auto", "replayed", "random")]


def test_more_slots_than_there_is_room_for_are_refused(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results would not be those of the same study elsewhere."""
    monkeypatch.setattr(Cluster, "slots", lambda _: 3)
    with pytest.raises(ValueError, match=r"^slots_per_run=4: there is room for 3 at a time; lower it"):
        run_side_by_side(
            waiting(tmp_path, {"fixed": 1.0}), cluster=Cluster(), slots=4, task="ridge", settings={},
            retry_failed=False, progress=Progress(said.append, total=1),
        )  # fmt: skip
    assert said == []


# On Ray -------------------------------------------------------------------------------------------------------------


def timeless(frame: pd.DataFrame) -> pd.DataFrame:
    """Without clock times; trials by the order in which they appear, for Tune names each anew."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(frame["trial_id"]))}
    kept = frame.drop(columns=["wall_time_s", "device_time_s"], errors="ignore")
    names = {name: kept[name].map(numbers) for name in ("trial_id", "parent_trial_id") if name in kept}
    return kept.assign(**names).reset_index(drop=True)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("undrawn")
def test_tables_do_not_depend_on_how_many_runs_go_side_by_side(cluster: Cluster, tmp_path: Path) -> None:
    """A population with copies and a run that is made from another one among them; by a task of the caller's own."""
    plain = get_task("digits-mlp", train_images=100, hidden=16, epochs=3, warmup_epochs=0, hyper_lr=0.1)
    splits = {seed: plain.data(seed) for seed in (0, 1)}
    task = Task(**{**vars(plain), "name": "mine", "data": lambda seed: splits[seed]})
    found: list[Results] = []
    said: list[str] = []
    for lanes in (1, 2):
        where = Cluster(max_concurrent=lanes)
        out = tmp_path / str(lanes)
        methods = ["auto", "random", "pbt", "replayed"]
        found.append(compare(task, methods, budget=7, seeds=2, out=out, cluster=where, say=said.append))
    assert found[0].study["missing"] == found[1].study["missing"] == []
    assert math.isfinite(found[0].incumbent["best_val_loss"].min())
    for name in ("reports", "schedule", "incumbent"):
        one, two = (timeless(getattr(results, name)) for results in found)
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert len(set(found[0].reports["method"])) == 4
    assert found[0].schedule.query("method == 'pbt'")["parent_trial_id"].notna().any()
    side_by_side = [line.split()[-1] for line in said[said.index("[1/8] auto, seed 0: started", 1) :]][:2]
    assert side_by_side == ["started", "started"]
