"""Runs that are made from another one: their order, their inputs, their costs, and what becomes of them without it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from tune_stn import compare
from tune_stn.methods import get_method
from tune_stn.study.results import Results
from tune_stn.study.run import DONE, SCHEDULE, NothingToFollow, Run, read_followed
from tune_stn.study.summary import summary
from tune_stn.tasks import Task, get_task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recording.journal import REPORTS

EPOCHS, BUDGET, SEED = 4, 10.0, 5
ASKED = ("replayed", "last-values", "auto", "fixed", "frozen")
ORDER = ("auto", "fixed", "frozen", "replayed", "last-values")
SETTINGS: Mapping[str, Any] = {
    **{"epochs": EPOCHS, "train_images": 300, "hidden": 16, "warmup_epochs": 1, "train_steps": 2, "hyper_lr": 0.3},
}
TIMES = ["wall_time_s", "device_time_s", "trial_id"]


@cache
def tiny() -> Task:
    """Its data comes along: a worker need not import what the digits are in."""
    task = get_task("digits-mlp", **SETTINGS)
    splits = task.data(SEED)
    return replace(task, data=lambda seed: splits)


pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def study(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Results:
    """`auto` with its controls on a tiny task, asked for in another order than they can run in."""
    out = tmp_path_factory.mktemp("followed") / "study"
    return compare(tiny(), ASKED, budget=BUDGET, seeds=[SEED], out=out, cluster=cluster, say=said.append)


def best_trial(study: Results) -> str:
    incumbent = study.incumbent[study.incumbent["method"] == "auto"]
    return str(incumbent["trial_id"].iloc[-1])


@pytest.mark.ray
def test_the_followed_run_comes_first(study: Results, said: list[str]) -> None:
    started = [line.split()[1].rstrip(",") for line in said if line.endswith(" started")]
    assert sorted(started) == sorted(ASKED)
    (ended,) = (number for number, line in enumerate(said) if "auto, seed" in line and " done: " in line)
    for number, line in enumerate(said):
        assert number > ended or not line.endswith(" started") or not line.split()[1].startswith(("replayed", "last"))
    assert study.study["missing"] == []
    assert study.study["methods"] == list(ASKED)


@pytest.mark.ray
def test_the_schedule_and_the_last_values_are_those_of_the_best_trial(study: Results) -> None:
    table = study.schedule.pivot_table(index=["method", "trial_id", "step"], columns="hp", values="value")
    followed = table.loc["auto", best_trial(study)]
    assert len(followed) > 2
    (trial,) = table.loc["replayed"].index.unique("trial_id")
    # What came into force after the last step of a full trial is never replayed.
    replayed = followed[followed.index < study.reports.loc[study.reports["method"] == "replayed", "step"].max()]
    changes = replayed[replayed.ne(replayed.shift()).any(axis=1)]  # where nothing moved, there is nothing to set
    assert len(changes) > 1
    pd.testing.assert_frame_equal(table.loc["replayed", trial], changes, rtol=1e-6)
    (trial,) = table.loc["last-values"].index.unique("trial_id")
    held = table.loc["last-values", trial]
    assert held.index.tolist() == [0]
    pd.testing.assert_series_equal(held.iloc[0], followed.iloc[-1], rtol=1e-6, check_names=False)
    record = json.loads((study.path / "state" / f"replayed-seed{SEED}" / DONE).read_text())
    assert record["followed"] == best_trial(study)


@pytest.mark.ray
def test_what_follows_is_charged_with_what_it_follows(study: Results) -> None:
    reports = {name: rows.reset_index(drop=True) for name, rows in study.reports.groupby("method")}
    before = reports["auto"][["cost_total", "wall_time_s"]].max()
    assert before["cost_total"] >= BUDGET
    for name in ("replayed", "last-values"):
        rows = reports[name]
        assert rows["cost"].tolist() == [1, 2, 3, 4]
        assert (rows["cost_total"] - rows["cost"]).tolist() == pytest.approx([before["cost_total"]] * EPOCHS)
        assert rows["wall_time_s"].min() > before["wall_time_s"]
        assert rows["status"].iloc[-1] == "finished"
    table = summary(study).set_index("method")
    assert table.loc["replayed", "cost"] == pytest.approx(before["cost_total"] + EPOCHS)
    own = reports["replayed"]["device_time_s"].max()
    assert table.loc["replayed", "device_time_s"] == pytest.approx(own + table.loc["auto", "device_time_s"])
    assert table.loc["replayed", "trials"] == 1
    assert reports["fixed"]["cost_total"].max() == EPOCHS


@pytest.mark.ray
def test_the_frozen_run_is_one_trial_that_tunes_nothing(study: Results) -> None:
    reports = study.reports[study.reports["method"] == "frozen"]
    assert len(reports) == EPOCHS
    assert reports["cost_total"].max() == EPOCHS  # nothing but plain training
    schedule = study.schedule[study.schedule["method"] == "frozen"]
    assert set(schedule["source"]) == {"start"}
    assert set(schedule["step"]) == {0}


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn")
def test_a_run_that_follows_is_made_again_from_the_files_of_the_other(study: Results, cluster: Cluster) -> None:
    """As after a crash between the two, or where the controls are asked for later."""
    shutil.rmtree(study.path / "state" / f"replayed-seed{SEED}")
    lines: list[str] = []
    again = compare(
        tiny(), ASKED, budget=BUDGET, seeds=[SEED], out=study.path, resume=True, cluster=cluster, say=lines.append
    )
    assert [line.split(", seed")[0] for line in lines if " done: " in line] == ["[5/5] replayed"]
    for name in ("reports", "schedule", "incumbent"):
        before, after = (getattr(found, name).drop(columns=TIMES, errors="ignore") for found in (study, again))
        pd.testing.assert_frame_equal(before, after, check_exact=True)


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn")
def test_runs_that_diverge_are_said_and_the_study_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """And a run that would follow one of them is missing."""
    lines: list[str] = []
    settings = {"lr": 1e6, "clip_norm": None, "restarts": 0}
    found = compare(
        tiny(), ["replayed", "auto", "fixed"], budget=2, seeds=[0], out=tmp_path, settings=settings, cluster=cluster,
        say=lines.append,
    )  # fmt: skip
    assert set(found.reports["method"]) == {"auto", "fixed"}
    assert set(found.reports.groupby("trial_id").last()["status"]) <= {"diverged", "stopped"}
    diverged = found.reports[found.reports["status"] == "diverged"]
    assert set(diverged["method"]) == {"auto", "fixed"}
    assert (diverged["val_loss"] == math.inf).all()
    assert not found.incumbent["best_val_loss"].isin([math.inf]).any()
    assert any("diverged: the " in line and "loss became" in line for line in lines)

    assert all(entry["no_result"] for entry in found.study["missing"])
    (missing,) = (entry for entry in found.study["missing"] if entry["method"] == "replayed")
    reason = "the run of auto at seed 0, which it is made from, has no finite validation loss"
    assert missing == {"method": "replayed", "seed": 0, "reason": reason, "no_result": True}
    assert f"[3/3] replayed, seed 0: has no result: {reason}" in lines
    assert reason in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "state" / "replayed-seed0").exists()  # it is tried again, should there be a result one day


# Without Ray --------------------------------------------------------------------------------------------------------


def finished_run(folder: Path, *lines: Mapping[str, Any]) -> Run:
    """A finished run of `auto` with these reports, and a schedule of one hyperparameter for the trial "b"."""
    folder.mkdir()
    (folder / REPORTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / DONE).write_text(json.dumps({"trials": 1, "cost_total": 12.5, "failures": {}, "hopeless": False}))
    rows = {"trial_id": "b", "parent_trial_id": None, "hp": "dropout_1", "raw": 0.0, "scale": 0.5, "source": "stn"}
    frame = pd.DataFrame([rows | {"step": step, "epoch": step, "value": 0.1 * (step + 1)} for step in range(3)])
    frame.to_parquet(folder / SCHEDULE)
    task = get_task("digits-mlp")
    return Run(task=task, config={}, method=get_method("auto"), seed=3, budget=9, trials=None, folder=folder)


def report(trial: str, epoch: int, val_loss: float) -> dict[str, Any]:
    numbers = {"step": epoch, "cost": 1.0, "cost_total": 6.0 + epoch, "wall_time_s": 2.0 * epoch, "device_time_s": 1.0}
    losses = {"train_loss": 1.0, "test_loss": 1.0, "val_loss": val_loss}
    return (
        {"trial_id": trial, "segment": "", "epoch": epoch, "status": "running", "parent_trial_id": ""}
        | numbers
        | losses
    )


def test_the_best_trial_is_the_one_with_the_least_loss_at_any_time(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path / "r", report("a", 1, 0.5), report("b", 1, 0.3), report("b", 2, 0.9), report("a", 2, 0.4)
    )
    found = read_followed(run)
    assert (found.trial_id, found.cost_total, found.wall_time_s) == ("b", 12.5, 4.0)
    assert found.schedule is not None
    assert found.schedule.at(2) == pytest.approx({"dropout_1": 0.3})


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "has no finite validation loss"),  # every trial failed
        ([report("a", 1, float("inf"))], "has no finite validation loss"),
        ([report("a", 1, 0.5)], "has no schedule that can be read: .*no rows of trial_id 'a'"),
    ],
)
def test_what_gives_nothing_to_follow(tmp_path: Path, lines: list[dict[str, Any]], reason: str) -> None:
    run = finished_run(tmp_path / "r", *lines)
    with pytest.raises(NothingToFollow, match=f"^the run of auto at seed 3, which it is made from, {reason}"):
        read_followed(run)
    (run.folder / DONE).unlink()
    with pytest.raises(NothingToFollow, match="is not finished"):
        read_followed(run)


def test_a_control_alone_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match=r"methods=\['replayed'\]: .* of auto at the same seed, .*; add auto$"):
        compare("digits-mlp", ["replayed"], budget=1.0, seeds=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
