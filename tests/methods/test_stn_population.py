"""The population in a comparison: its size, what it does with its budget, and that nothing about a crash matters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.tune.error import TuneError
from ray.tune.experiment import Experiment

from tune_stn.methods import METHODS, Context, Plan
from tune_stn.study.run import SCHEDULE, Run, execute
from tune_stn.tasks import get_task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recording.journal import REPORTS
from tune_stn.tuning.recording.tables import read_recorded
from tune_stn.tuning.scheduler import STNScheduler
from tune_stn.tuning.trainable import STNTrainable

TIMES = ["wall_time_s", "device_time_s"]
SETTINGS = {"epochs": 6, "train_images": 100, "hidden": 16, "warmup_epochs": 0}
# Epochs cost 2.5 to 3.2: three to the first comparison, and the budget ends with the last report before the second.
MEMBERS, INTERVAL, BUDGET = 3, 6.0, 43.5
STN_POPULATION = METHODS["stn-population"]


def scheduler(plan: Plan) -> STNScheduler:
    assert isinstance(plan.scheduler, STNScheduler)
    return plan.scheduler


# Plans ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "size"), [(5.0, 4), (60.0, 4), (90.0, 6), (300.0, 20)])
def test_as_many_members_as_full_trials_are_paid_if_epochs_are_cheap(
    make_context: Any, draw: Any, budget: float, size: int
) -> None:
    plan = STN_POPULATION.plan(make_context(budget=budget))
    drawn = draw(plan, size)
    assert drawn[0] == dict(get_task("digits-mlp").start)
    assert len(drawn) == size == len({point["dropout_1"] for point in drawn})
    assert plan.search_alg.size == size
    assert (scheduler(plan).budget, scheduler(plan).epochs) == (budget, 10)


def test_when_all_members_have_ended_others_follow_one_at_a_time(make_context: Any, tmp_path: Path) -> None:
    """The comparisons stop members, so that something of the budget is left at the end: 148 of 200 were spent."""
    plan = STN_POPULATION.plan(make_context(budget=60.0))

    def search() -> Any:
        made: Any = STN_POPULATION.plan(make_context(budget=60.0)).search_alg
        config: Any = {"config": {"hp": plan.hp}, "num_samples": plan.samples, "storage_path": str(tmp_path)}
        made.add_configurations([Experiment("x", STNTrainable, **config)])
        return made

    first = search()
    members = [first.next_trial() for _ in range(4)]
    assert first.next_trial() is None
    for member in members[:3]:
        first.on_trial_complete(member.trial_id)
        assert first.next_trial() is None
    first.save_to_dir(str(tmp_path), "session")
    restored = search()
    restored.restore_from_dir(str(tmp_path))
    assert restored.next_trial() is None
    for one in (first, restored):
        one.on_trial_complete(members[3].trial_id)
        another = one.next_trial()
        assert another is not None
        assert one.next_trial() is None
        one.on_trial_complete(another.trial_id, error=True)
        assert one.next_trial() is not None
    assert plan.samples >= 4 + 60 / 10  # enough for whatever is left


def test_a_number_of_trials_is_taken_as_it_is_and_none_is_stopped(make_context: Any) -> None:
    plan = STN_POPULATION.plan(make_context(budget=math.inf, trials=3))
    assert plan.samples == 3
    assert (scheduler(plan).budget, scheduler(plan).epochs) == (None, None)


@pytest.mark.parametrize(("epochs", "warmup"), [(4, 0), (10, 2), (60, 5), (200, 5)])
def test_four_comparisons_or_more_and_none_in_the_warm_up(make_context: Any, epochs: int, warmup: int) -> None:
    """Whether an epoch costs 1.5 or 3 plain ones."""
    found = scheduler(
        STN_POPULATION.plan(make_context(task=get_task("digits-mlp", epochs=epochs, warmup_epochs=warmup)))
    )
    assert found.interval * 4 == pytest.approx(1.5 * epochs)
    assert found._next_milestone({"round": 0}) >= 3 * warmup
    assert found.on_loss == "restart"


def test_checkpoints_last_for_an_interval() -> None:
    """20 a trial, 4 intervals in it where epochs are cheap; then the one of the pause, and one in case of damage."""
    context = Context(get_task("digits-mlp"), budget=200.0, seed=0, slots=2)
    assert STN_POPULATION.plan(context).kept_checkpoints >= 20 / 4 + 2
    assert STN_POPULATION.restores


# A run ---------------------------------------------------------------------------------------------------------------


def small(folder: Path) -> Run:
    """Three members of six epochs, the last of which are not paid."""

    def plan(context: Context) -> Plan:
        return replace(STN_POPULATION.plan(context), samples=MEMBERS, scheduler=STNScheduler(interval=INTERVAL))

    task = get_task("digits-mlp", **SETTINGS)
    splits = task.data(1)  # which come along: a worker need not import what the digits are in
    task = replace(task, data=lambda seed: splits)
    return Run(
        task=task,
        config={"task": task},
        method=replace(STN_POPULATION, plan=plan),
        seed=1,
        budget=BUDGET,
        trials=None,
        folder=folder,
    )


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reports and schedule by what names a row, without clock times, and with numbers for the names that Tune gives."""
    reports = read_recorded(folder / REPORTS).reports.drop(columns=[*TIMES, "cost_total"])
    schedule = pd.read_parquet(folder / SCHEDULE)
    for table in (reports, schedule):
        for column in ("trial_id", "parent_trial_id"):
            table[column] = table[column].fillna("").str.split("_").str[-1]
    return (
        reports.set_index(["trial_id", "segment", "epoch"]).sort_index(),
        schedule.set_index(["trial_id", "hp", "step", "source"]).sort_index(),
    )


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("population") / "run"
    record = execute(small(folder), cluster)
    assert (record["trials"], record["failures"]) == (MEMBERS, {})
    return folder


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_losers_take_over_from_winners_and_the_budget_is_kept(whole: Path) -> None:
    reports, schedule = tables(whole)
    totals = read_recorded(whole / REPORTS).reports["cost_total"]
    assert (totals < BUDGET).sum() == len(totals) - 1 == 5 * MEMBERS - 1
    assert reports.groupby("trial_id")["cost"].max().sum() == pytest.approx(totals.iloc[-1])
    # The loser is the one with the highest loss after the first report at 6 or more, of which there are as many.
    first = reports[reports["cost"] >= INTERVAL].groupby("trial_id").first()
    assert first["cost"].nunique() == 1
    children = reports[reports.index.get_level_values("segment") != ""]
    loser = first["val_loss"].idxmax()
    assert set(children.index.get_level_values("trial_id")) == {loser}
    assert set(children["parent_trial_id"]) == {first["val_loss"].idxmin()}
    taken = schedule.xs(loser).xs("exploit", level="source")
    assert set(taken["parent_trial_id"]) == {first["val_loss"].idxmin()}
    (step,) = set(taken.index.get_level_values("step"))
    rows = schedule[schedule["raw"].notna()].xs(loser).reset_index()  # its own: reports alone know no raw coordinates
    assert set(rows[rows["step"] < step]["parent_trial_id"]) == {""}
    assert set(rows[rows["step"] > step]["parent_trial_id"]) == set(taken["parent_trial_id"])
    values = children.iloc[0]
    assert [values["step"] - 2, values.name[2] - 1] == [step, taken["epoch"].iloc[0]]  # two batches an epoch


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_run_that_crashes_after_a_take_over_goes_on_to_the_same_tables(
    whole: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver, another scheduler: what they have to know is in the trials' configs and checkpoints."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    run = small(tmp_path / "run")

    def crash(report: Mapping[str, Any], total: float) -> None:
        if report["segment"]:
            raise RuntimeError("the driver crashes")

    with pytest.raises(TuneError, match="the driver crashes"):
        execute(run, cluster, crash)
    assert not (run.folder / SCHEDULE).exists()
    record = execute(run, cluster)
    assert (record["trials"], record["failures"]) == (MEMBERS, {})
    # Trials may report once more although they had saved all: after a crash, the recorder cannot be sure of it.
    assert record["cost_total"] < BUDGET + MEMBERS * 3.3
    for found, expected in zip(tables(run.folder), tables(whole), strict=True):
        expected = expected[expected["raw"].notna()] if "raw" in expected else expected
        pd.testing.assert_frame_equal(found.loc[expected.index], expected, check_exact=True)
