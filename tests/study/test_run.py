"""One run through Tune: killed workers, failing trials, budget, copies of a population."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

from tune_stn.methods import get_method
from tune_stn.study.run import DONE, SCHEDULE, Interrupted, Run, execute
from tune_stn.tasks import Task, get_task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recording.journal import ERRORS, REPORTS, STARTUP, TOOK, read_reports

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
SEED = 1
TIMES = ("wall_time_s", "device_time_s", TOOK, STARTUP, "trial_id", "parent_trial_id", "segment")


def make_run(folder: Path, task: Task, method: str, *, budget: float = math.inf, trials: int | None = None) -> Run:
    config = {"task": task}
    return Run(
        task=task, config=config, method=get_method(method), seed=SEED, budget=budget, trials=trials, folder=folder
    )


def small(**more: Any) -> Task:
    """Its data comes along: a worker need not import what the digits are in."""
    task = get_task(get_task("digits-mlp", train_images=100, hidden=16), **more)
    splits = task.data(SEED)
    return replace(task, data=lambda seed: splits)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """Reports without clock times and without Tune's names of the trials."""
    return [{k: v for k, v in report.items() if k not in TIMES} for report in read_reports(folder / REPORTS)]


def schedule(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / SCHEDULE).drop(columns=["trial_id", "parent_trial_id"])


def test_killed_workers_and_ctrl_c_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Killed before the first checkpoint, and between two; then Ctrl-C. No report is lost or doubled; same bits.

    Tune calls an interrupted trial terminated, and there is no other that would be missing: yet the run is unfinished.
    """
    pids = tmp_path / "pids"
    plain = small(epochs=45, warmup_epochs=0)
    network = plain.model

    def noted() -> nn.Module:
        with open(pids, "a") as file:
            file.write(f"{os.getpid()}\n")
        return network()

    task = replace(plain, model=noted)
    record = execute(make_run(tmp_path / "whole", task, "stn", trials=1), cluster)
    assert record["failures"] == {}
    killed: list[int] = []

    def kill(report: Mapping[str, Any], cost_total: float) -> None:
        if report["epoch"] in (1, 27):
            killed.append(int(pids.read_text().split()[-1]))
            os.kill(killed[-1], signal.SIGKILL)

        if report["epoch"] == 36:
            os.kill(os.getpid(), signal.SIGINT)

    run = make_run(tmp_path / "killed", task, "stn", trials=1)
    with pytest.raises(Interrupted):
        execute(run, cluster, kill)
    assert run.done is None
    assert 36 <= len(timeless(run.folder)) < 45
    record = execute(run, cluster, kill)
    assert len(set(killed)) == 2
    assert len(pids.read_text().split()) == 5  # one of the whole run, and four of this
    assert record["failures"] == {}
    assert record["trials"] == 1
    found = timeless(tmp_path / "killed")
    assert [report["epoch"] for report in found] == list(range(1, 46))
    assert found == timeless(tmp_path / "whole")
    pd.testing.assert_frame_equal(schedule(tmp_path / "killed"), schedule(tmp_path / "whole"), check_exact=True)
    assert schedule(tmp_path / "whole")["step"].max() == found[-1]["step"]


def test_a_worker_that_dies_as_the_second_trial_starts_takes_neither_with_it(cluster: Cluster, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    plain = small(epochs=3, warmup_epochs=0)
    network = plain.model

    def noted() -> nn.Module:
        with open(starts, "a") as file:
            file.write("x")
        if starts.stat().st_size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return network()

    run = make_run(tmp_path / "run", replace(plain, model=noted), "stn", trials=2)
    record = execute(run, replace(cluster, max_concurrent=1))
    assert record["failures"] == {}
    assert record["trials"] == 2
    assert len(timeless(tmp_path / "run")) == 6
    assert starts.stat().st_size == 3


def test_a_self_tuning_trial_cut_off_by_the_budget_has_its_whole_schedule(cluster: Cluster, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small(epochs=200, warmup_epochs=0, response="gate"), "stn", budget=9.0)
    record = execute(run, cluster)
    reports = read_reports(run.folder / REPORTS)
    assert reports[-2]["cost_total"] < 9.0 <= reports[-1]["cost_total"] == record["cost_total"]
    assert schedule(run.folder)["step"].max() == reports[-1]["step"]
    last = schedule(run.folder).query("step == step.max()").set_index("hp")["value"].to_dict()
    assert last == pytest.approx({k.removeprefix("hp/"): v for k, v in reports[-1].items() if k.startswith("hp/")})
    assert run.done == record == json.loads((run.folder / DONE).read_text())
    assert record["wall_time_s"] == reports[-1]["wall_time_s"]
    assert record["device_time_s"] == pytest.approx(reports[-1]["device_time_s"])
    assert record["startup_s"] == reports[0][STARTUP] > 0
    busy_s = sum(report[TOOK] for report in reports)
    assert 0 < record["device_time_s"] < busy_s
    assert record["slots_in_use"] == pytest.approx(busy_s / record["wall_time_s"] / record["slots"])
    assert record["slots"] == 1


def test_trials_that_fail_are_named_and_end_the_run_when_they_all_do(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_stn.tuning.budget.FAILURES_IN_A_ROW", 2)
    plain, starts = small(epochs=2), tmp_path / "starts"

    def fails() -> nn.Module:
        with open(starts, "a") as file:
            file.write("x")
        raise RuntimeError("this network cannot be made")

    run = make_run(tmp_path / "run", replace(plain, model=fails), "random", budget=40.0)
    said: list[tuple[Any, ...]] = []
    record = execute(run, replace(cluster, max_concurrent=1), on_failure=lambda *what: said.append(what))
    assert starts.stat().st_size == 4  # what cannot be set up is started again once: a process may have died
    assert sorted((trial, not again) for trial, _, _, again in said) == sorted(
        (trial, last) for trial in record["failures"] for last in (False, True)
    )
    for _, lines, path, _ in said:
        assert lines[-1] == "RuntimeError: this network cannot be made"
        assert "in fails" in Path(path).read_text()
        assert Path(path).parent == run.folder / ERRORS
    assert record["hopeless"] is True
    assert record["trials"] == 0
    assert record["cost_total"] == 0
    assert len(record["failures"]) == 2
    assert all("this network cannot be made" in reason for reason in record["failures"].values())
    assert len(pd.read_parquet(run.folder / SCHEDULE)) == 0


def test_a_population_copies_and_explores(cluster: Cluster, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small(epochs=8), "pbt", budget=24.0)
    record = execute(run, cluster)
    reports = pd.DataFrame(read_reports(run.folder / REPORTS))
    assert reports["cost_total"].is_monotonic_increasing
    assert reports["cost_total"].iloc[-1] == pytest.approx(len(reports))  # plain epochs, each charged once
    assert reports.groupby("trial_id")["cost"].last().sum() == pytest.approx(record["cost_total"])
    assert reports.groupby("trial_id")["cost"].apply(lambda cost: cost.is_monotonic_increasing).all()
    table = pd.read_parquet(run.folder / SCHEDULE)
    starts = table[table["source"] == "fixed"]
    assert starts["parent_trial_id"].isna().all()
    assert set(starts["trial_id"]) == set(reports["trial_id"])
    copies = table[table["source"] != "fixed"]
    assert "explore" in set(copies["source"]) <= {"explore", "exploit"}
    assert (
        copies["parent_trial_id"].isin(starts["trial_id"]) & (copies["parent_trial_id"] != copies["trial_id"])
    ).all()
    assert (copies["epoch"] > 0).all()
    assert (copies["step"] == 2 * copies["epoch"]).all()  # two batches of 50 an epoch
    for row in copies.itertuples():
        assert run.task.space[row.hp].contains(row.value)
    # What a copy says it does is what its next report was made with.
    for (trial, epoch), rows in copies.groupby(["trial_id", "epoch"]):
        after = reports[(reports["trial_id"] == trial) & (reports["epoch"] == epoch + 1) & (reports["segment"] != "")]
        assert any(
            all(report[f"hp/{hp}"] == value for hp, value in zip(rows["hp"][:5], rows["value"][:5], strict=True))
            for report in after.to_dict("records")
        )
