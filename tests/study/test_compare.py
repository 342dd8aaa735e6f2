"""The comparison, end to end: tables, pairing, budget, resume, and what goes wrong in a run."""

from __future__ import annotations

import errno
import html
import json
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
import torch
from torch import nn

from tune_stn import compare, load_model
from tune_stn.data.splits import Split, Splits
from tune_stn.methods import get_method
from tune_stn.space import Normal, SearchSpace
from tune_stn.study.compare import _from_here, run_study
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.results import Results
from tune_stn.study.summary import summary
from tune_stn.tasks import Task, get_task
from tune_stn.tasks.own_code import OwnCodeError
from tune_stn.training import Trainer
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.ground import GroundLost

EPOCHS, BUDGET, SEED = 4, 10.0, 5
METHODS = ("stn", "random", "fixed")
SETTINGS: Mapping[str, Any] = {
    "epochs": EPOCHS,
    "train_images": 100,
    "hidden": 16,
    "warmup_epochs": 1,
    "train_steps": 2,
}
TIMES = ["wall_time_s", "device_time_s", "trial_id", "cost_total"]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def study(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Results:
    """Three methods on a tiny task at one seed."""
    return compare(
        "digits-mlp",
        METHODS,
        budget=BUDGET,
        seeds=[SEED],
        out=tmp_path_factory.mktemp("compare") / "study",
        settings=SETTINGS,
        cluster=cluster,
        say=said.append,
    )


def trials(study: Results, method: str) -> list[pd.DataFrame]:
    """The reports of a method, a frame for each trial in the order in which Tune numbered them.

    Not in that of their first reports: of two that run side by side, either may be the first to report.
    """
    reports = study.reports[study.reports["method"] == method]
    return [part for _, part in reports.groupby("trial_id", sort=True)]


# Tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_tables_have_the_binding_columns(study: Results) -> None:
    names = list(get_task("digits-mlp").space)
    schemas = {name: pq.read_schema(study.path / f"{name}.parquet") for name in ("reports", "schedule", "incumbent")}
    assert schemas["reports"].names == [
        *("task", "method", "seed", "trial_id", "report_index", "epoch", "step", "cost", "cost_total", "wall_time_s"),
        *("device_time_s", "train_loss", "val_loss", "test_loss", "val_accuracy", "test_accuracy"),
        *(f"hp/{name}" for name in names),
        "status",
    ]
    assert schemas["schedule"].names == [
        *("task", "method", "seed", "trial_id", "parent_trial_id", "step", "epoch", "hp", "value", "raw", "scale"),
        "source",
    ]
    assert schemas["incumbent"].names == [
        *("task", "method", "seed", "cost_total", "wall_time_s", "trial_id", "best_val_loss", "test_loss_at_best"),
    ]
    assert all(b"tune_stn.schema_version" in schema.metadata for schema in schemas.values())
    assert {(task, seed) for task, seed in zip(study.reports["task"], study.reports["seed"], strict=True)} == {
        ("digits-mlp", SEED)
    }
    assert (
        set(study.reports["method"]) == set(study.schedule["method"]) == set(study.incumbent["method"]) == set(METHODS)
    )
    pd.testing.assert_frame_equal(best_so_far(study.reports), study.incumbent)
    assert study.incumbent["test_loss_at_best"].notna().all()
    # Each trial's own best losses and its last report, if it ended by itself, have figures of the test split.
    before = study.reports.groupby("trial_id")["val_loss"].transform(lambda losses: losses.cummin().shift())
    is_used = ~(study.reports["val_loss"] >= before) | (study.reports["status"] == "finished")
    for column in ("test_loss", "test_accuracy"):
        assert (study.reports[column].notna() == is_used).all()
    assert not is_used.all()


@pytest.mark.ray
@pytest.mark.parametrize("method", METHODS)
def test_the_trained_model_of_the_best_epoch_comes_out(study: Results, method: str) -> None:
    """An ordinary network, with the loss that was reported and the rates that were found."""
    best, reports = study.best(method), study.reports[study.reports["method"] == method]
    assert best.metrics["val_loss"] == reports["val_loss"].min()
    assert (best.task, best.method, best.seed) == ("digits-mlp", method, SEED)
    model = load_model(study.path, method=method, seed=SEED)
    assert isinstance(model, nn.Sequential)
    assert not model.training
    valid = get_task("digits-mlp", **SETTINGS).data(SEED).valid
    assert isinstance(valid, Split)
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(valid.inputs), valid.targets))
    assert loss == pytest.approx(best.metrics["val_loss"], rel=1e-5)
    rates = [module.p for module in model if isinstance(module, nn.Dropout)]
    assert rates == pytest.approx([best.hyperparameters[f"dropout_{name}"] for name in ("input", "1", "2")])
    # The same from the checkpoint itself, in another place.
    assert best.checkpoint is not None
    again = load_model(best.checkpoint / "state.pt", task=get_task("digits-mlp", **SETTINGS))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.ray
def test_the_best_of_all_and_what_there_is_not(study: Results, tmp_path: Path) -> None:
    assert study.best().metrics["val_loss"] == study.reports["val_loss"].min()
    with pytest.raises(ValueError, match=r"method='pbt': the study in .* has results of fixed, random, stn"):
        study.best("pbt")
    with pytest.raises(ValueError, match=rf"seed=7: the study in .* has results of {SEED}"):
        load_model(study.path, seed=7)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*: give a study's directory, or a folder that"):
        load_model(tmp_path)


@pytest.mark.ray
def test_schedules_begin_at_the_start_values_and_hold_every_hyper_step(study: Results) -> None:
    start = get_task("digits-mlp").start
    for method, source in (("stn", "start"), ("fixed", "fixed"), ("random", "fixed")):
        first = trials(study, method)[0]["trial_id"].iloc[0]
        table = study.schedule[(study.schedule["method"] == method) & (study.schedule["trial_id"] == first)]
        rows = table[table["step"] == 0]
        assert dict(zip(rows["hp"], rows["value"], strict=True)) == pytest.approx(dict(start), rel=1e-5)
        assert set(rows["source"]) == {source}
        assert table["raw"].notna().all() == (method == "stn")
    for part in trials(study, "stn"):
        table = study.schedule[study.schedule["trial_id"] == part["trial_id"].iloc[0]]
        assert sorted(set(table["step"])) == [0, *range(4, part["step"].max() + 1, 2)]  # after a warm-up of 2 steps


@pytest.mark.ray
def test_study_json_says_how_to_run_it_again(study: Results) -> None:
    found = json.loads((study.path / "study.json").read_text())
    assert found == study.study
    assert (found["task"], found["methods"], found["seeds"]) == ("digits-mlp", list(METHODS), [SEED])
    assert (found["budget"], found["settings"], found["missing"]) == (BUDGET, dict(SETTINGS), [])
    assert {"python", "torch", "ray", "tune_stn"} <= set(found["versions"])
    assert found["cluster"]["slots"] == 2
    assert set(found["conversion"]) == {"fixed", "stn"}
    assert found["conversion"]["stn"]["bound"] == {"0": "dropout_input", "3": "dropout_1", "6": "dropout_2"}
    assert set(found["conversion"]["stn"]["responding"]) == {"1", "4", "7"}
    assert all(isinstance(remark, str) for remark in found["remarks"])
    page = (study.path / "report.html").read_text()
    assert "What became of the network" in page
    assert ("Worth a second look" in page) == bool(found["remarks"])
    assert set(found["peak_memory_mib"]) == set(found["methods"])
    assert all(50 < peak < 5000 for peak in found["peak_memory_mib"].values())  # of a process that has loaded torch
    assert (study.path / "report.html").stat().st_size > 10_000
    assert list((study.path / "plots").glob("*.png"))


# Fairness -----------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_methods_are_paired(study: Results) -> None:
    """The first trial of each is the task's start values on the same data and weights: the same reports, but STN's."""
    task = get_task("digits-mlp", **SETTINGS)
    trainer = Trainer(task, algorithm="fixed", seed=SEED)
    expected = pd.DataFrame([trainer.run_epoch() for _ in range(EPOCHS)])
    names = [
        "epoch",
        "step",
        "cost",
        "train_loss",
        "val_loss",
        "test_loss",
        "val_accuracy",
        *(f"hp/{n}" for n in task.space),
    ]
    for method in ("fixed", "random"):
        at_start = [
            part for part in trials(study, method) if (part["hp/dropout_1"] == expected["hp/dropout_1"][0]).all()
        ]
        assert len(at_start) == 1, method
        found = at_start[0][names].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected[names].head(len(found)), check_exact=True)
    assert trials(study, "fixed")[0]["status"].tolist() == ["running"] * (EPOCHS - 1) + ["finished"]
    tuned = Trainer(task, algorithm="stn", seed=SEED)
    first = tuned.run_epoch()
    assert trials(study, "stn")[0]["train_loss"].iloc[0] == first["train_loss"]


@pytest.mark.ray
def test_the_budget_is_kept_by_all(study: Results) -> None:
    for method in METHODS:
        reports = study.reports[study.reports["method"] == method]
        total = reports["cost_total"]
        assert total.is_monotonic_increasing
        assert reports.groupby("trial_id")["cost"].last().sum() == pytest.approx(total.iloc[-1])
        assert reports.groupby("trial_id")["epoch"].max().max() <= EPOCHS
        if method == "fixed":
            assert total.iloc[-1] == EPOCHS  # a second trial would be the same
        else:
            dearest = reports["cost"].groupby(reports["trial_id"]).diff().max()
            assert BUDGET <= total.iloc[-1] <= BUDGET + dearest
            assert (total < BUDGET).sum() == len(reports) - 1


@pytest.mark.ray
def test_progress_names_every_run(study: Results, said: list[str]) -> None:
    names = [f"[{i}/3] {name}, seed {SEED}:" for i, name in enumerate(METHODS, start=1)]
    assert [line for line in said if line.endswith(" started")] == [f"{name} started" for name in names]
    assert sorted(line[: line.index(" done: ")] for line in said if " done: " in line) == names


# Resume -------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn")
def test_finished_runs_are_not_run_again(study: Results, cluster: Cluster) -> None:
    """Though `study.json` is lost: it is written anew."""
    description = study.path / "study.json"
    before = json.loads(description.read_text())
    description.unlink()
    state = {path: path.stat().st_mtime_ns for path in (study.path / "state").rglob("*") if path.is_file()}
    lines: list[str] = []
    again = compare(
        "digits-mlp", METHODS, budget=BUDGET, seeds=[SEED], out=study.path, resume=True, settings=SETTINGS,
        cluster=cluster, say=lines.append,
    )  # fmt: skip
    skipped = [f"[{i}/3] {name}, seed {SEED}: finished before, skipped" for i, name in enumerate(METHODS, start=1)]
    assert lines[0] == f"{description} is missing: written anew, for its runs were begun by these very arguments"
    assert lines[1:] == [*skipped, *(f"note: {remark}" for remark in again.study["remarks"])]
    assert {**json.loads(description.read_text()), "remarks": before["remarks"]} == before
    assert {path: path.stat().st_mtime_ns for path in (study.path / "state").rglob("*") if path.is_file()} == state
    for name in ("reports", "schedule", "incumbent"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(study, name))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 11.0}, "with budget 10.0, not 11.0"),
        ({"task": "ridge", "settings": {"epochs": 4, "warmup_epochs": 1}}, "with task 'digits-mlp', not 'ridge'"),
        ({"settings": {**SETTINGS, "lr": 0.1}}, "with settings .*not .*'lr': 0.1"),
    ],
)
def test_resume_with_other_settings_is_refused(study: Results, change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"task": "digits-mlp", "budget": BUDGET, "settings": SETTINGS} | change
    before = (study.path / "study.json").read_bytes()
    with pytest.raises(ValueError, match=f"resume=True: .* was begun {words}"):
        compare(methods=METHODS, seeds=[SEED], out=study.path, resume=True, **arguments)
    assert (study.path / "study.json").read_bytes() == before


@pytest.mark.ray
def test_a_study_is_not_overwritten(study: Results) -> None:
    with pytest.raises(ValueError, match="holds a study already; add resume=True"):
        compare("digits-mlp", ["fixed"], budget=1, seeds=1, out=study.path)


# What goes wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn")
def test_trials_that_fail_are_named_and_run_again_when_the_cause_is_gone(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run has no result; one has, though its trial failed in epoch 3; the other run is there all the time."""
    monkeypatch.setattr("tune_stn.study.run.MAX_RESTARTS", 0)
    here = replace(cluster, max_concurrent=1)  # runs go on in this process
    plain = get_task(get_task("digits-mlp", train_images=100, hidden=16), epochs=4)
    load, cause, out, driver = plain.data, tmp_path / "cause", tmp_path / "out", os.getpid()
    cause.touch()

    def data(seed: int) -> Splits:
        if seed == 8 and cause.exists() and os.getpid() != driver:
            raise RuntimeError("no data at this seed")
        splits = load(seed)
        return replace(splits, valid=replace(splits.valid, targets=splits.valid.targets + 10 * (seed == 9)))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The trial at seed 9, which is told by its validation targets, fails when it has trained its third epoch."""
        if targets.max() > 9 and cause.exists() and os.getpid() != driver:
            with open(cause, "a") as file:
                file.write("x")
            if cause.stat().st_size == 3:
                raise RuntimeError("no third epoch")
        return nn.functional.cross_entropy(outputs, targets % 10)

    task: Task = replace(plain, name="mine", data=data, loss=loss)

    def study(**more: Any) -> tuple[Results, list[str]]:
        lines: list[str] = []
        found = compare(task, ["fixed"], budget=5, seeds=[7, 8, 9], out=out, cluster=here, say=lines.append, **more)
        assert found.study["task"] == "mine"
        assert set(found.reports["task"]) == {"mine"}
        return found, lines

    found, lines = study()
    assert found.reports.groupby("seed")["epoch"].max().to_dict() == {7: 4, 9: 2}
    reasons = {entry["seed"]: entry["reason"] for entry in found.study["missing"]}
    assert {entry["seed"]: entry["no_result"] for entry in found.study["missing"]} == {8: True, 9: False}
    assert "no result: 1 of its trials failed, the first with: RuntimeError: no data at this seed" in reasons[8]
    assert "1 of its trials failed" in reasons[9]
    assert "no third epoch" in reasons[9]
    failure, _ = found.study["failures"]
    assert {**failure, "trial_id": "", "file": ""} == {
        "method": "fixed", "seed": 8, "trial_id": "", "file": "",
        "reason": "RuntimeError: no data at this seed (2 times before its first report: it is not started again)",
    }  # fmt: skip
    restart = found.study["restarts"][0]
    assert restart == {**failure, "reason": "RuntimeError: no data at this seed", "epoch": 0}
    assert restart["reason"] in html.unescape((out / "report.html").read_text())
    assert "in data" in (out / failure["file"]).read_text()
    assert (summary(found)[["trials", "failed", "missing"]].to_numpy() == [3, 2, 1]).all()
    assert any("failed: RuntimeError: no data at this seed" in line for line in lines)
    assert all(reason in html.unescape((out / "report.html").read_text()) for reason in reasons.values())
    first = found.reports.query("seed == 7")
    cause.unlink()

    found, lines = study(resume=True)
    assert found.reports.groupby("seed")["epoch"].max().to_dict() == {7: 4, 8: 4, 9: 2}
    assert [entry["seed"] for entry in found.study["missing"]] == [9]
    assert lines[0] == "[1/3] fixed, seed 7: finished before, skipped"
    assert lines[1].startswith("[2/3] fixed, seed 9: finished before, skipped; 1 of its trials failed, which --retry")
    assert lines[2] == "[3/3] fixed, seed 8: taken up again, for it had no result"

    found, lines = study(resume=True, retry_failed=True)
    assert found.study["missing"] == []
    assert found.reports.query("seed == 9")["epoch"].tolist() == [1, 2, 3, 4]
    assert found.reports.query("seed == 9")["cost_total"].tolist() == [1, 2, 3, 4]
    assert found.reports.query("seed == 9")["status"].tolist() == ["running"] * 3 + ["finished"]
    pd.testing.assert_frame_equal(found.reports.query("seed == 7"), first, check_exact=True)


def test_on_a_full_disk_the_study_still_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a little room until then; here, as long as that is kept, there is none for anything else."""
    out, write = tmp_path / "out", Path.write_text

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Traceback ... OSError: [Errno 28] No space left on device")  # as Tune raises it

    def write_text(path: Path, *arguments: Any, **more: Any) -> int:
        if (out / ".spare").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *arguments, **more)

    monkeypatch.setattr(Cluster, "session", lambda _: nullcontext())
    monkeypatch.setattr(Cluster, "check", lambda *_, **__: None)
    monkeypatch.setattr("tune_stn.study.compare.describe_cluster", lambda _: {})
    monkeypatch.setattr(Cluster, "slots", lambda _: 1)
    monkeypatch.setattr("tune_stn.study.side_by_side.execute", full)
    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(GroundLost, match=r"No space left on device for .*; what was done is kept"):
        compare("ridge", ["fixed"], budget=2, seeds=2, out=out, rehearsal=False)
    reasons = [entry["reason"] for entry in json.loads((out / "study.json").read_text())["missing"]]
    assert len(reasons) == 2
    assert all(reason.startswith("No space left on device for ") for reason in reasons)
    assert not (out / ".spare").exists()


# Refused before anything starts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget=0: accepted is a number of 1 or more"),
        ({"budget": -3}, "budget=-3:"),
        ({"budget": 0.9}, "budget=0.9: not even one epoch of one trial, which costs 1; accepted is 1 or more"),
        ({"budget": 2, "methods": ["stn"]}, "stn would tune nothing .* give more than budget=2, or a smaller"),
        ({"budget": math.inf}, "budget=inf:"),
        ({"budget": math.nan}, "budget=nan:"),
        ({"seeds": 0}, "seeds=0: accepted is a number of seeds, 1 or more"),
        ({"seeds": -2}, "seeds=-2:"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]:"),
        ({"seeds": [-1]}, r"seeds=\[-1\]:"),
        ({"methods": []}, r"methods=\[\]: name at least one"),
        ({"methods": ["fixed", "fixed"]}, "a method is named twice"),
        ({"methods": ["fixed", "sgd"]}, "unknown method 'sgd'"),
        ({"task": "digits"}, "unknown task 'digits'"),
        ({"settings": {"epoch": 3}}, "unknown setting 'epoch'"),
        ({"settings": {"train_images": 1797}}, "train_images=1797"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    out = tmp_path / "out"
    arguments: dict[str, Any] = {"task": "digits-mlp", "methods": ["fixed"], "budget": 1.0, "seeds": 1} | change
    with pytest.raises(ValueError, match=message):
        compare(out=out, **arguments)
    assert not out.exists()


def test_a_method_that_cannot_search_the_space_is_refused_before_the_others_run(tmp_path: Path) -> None:
    task = get_task("digits-mlp")
    space = SearchSpace({**task.space, "weight_decay": Normal(0.0, 1.0)})
    with pytest.raises(ValueError, match="gp-bo cannot search 'weight_decay'"):
        compare(replace(task, space=space), ["fixed", "gp-bo"], budget=3, seeds=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_session_that_cannot_start_leaves_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command with the right address must not be told that there is a study already."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    arguments: dict[str, Any] = {"seeds": [0], "budget": 8.0, "trials": None, "resume": False}
    arguments["settings"] = {"lr_schedule": "CosineAnnealingLR", "lr_schedule_args": {"T_max": 1000}}
    lines: list[str] = []
    with pytest.raises(ValueError, match="no Ray cluster answers"):
        run_study(
            "digits-mlp", [get_method("stn")], out=tmp_path / "out", cluster=Cluster(address="127.0.0.1:1"),
            say=lines.append, **arguments,
        )  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == []
    # What was to be said before it started was said.
    assert lines[0].startswith("the network under stn:\n  1: response ")
    assert "\n  0: reads dropout_input" in lines[0]
    assert lines[1].startswith("note: lr_schedule: CosineAnnealingLR has T_max=1000")
    assert lines[2:] == ["connecting to Ray at 127.0.0.1:1"]


def test_what_a_task_raises_in_the_rehearsal_is_the_cause_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a rehearsal, the study gets as far as the cluster."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise KeyError("weights")

    task = replace(get_task("digits-mlp"), name="mine", loss=loss)
    with pytest.raises(OwnCodeError, match=r"the loss of task 'mine', given .* raised KeyError: 'weights'") as caught:
        compare(task, ["fixed", "auto"], budget=8, seeds=1, out=tmp_path / "out")
    assert isinstance(caught.value.__cause__, KeyError)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no Ray cluster answers"):
        compare(
            task, ["fixed"], budget=3, seeds=1, out=tmp_path / "out", rehearsal=False,
            cluster=Cluster(address="127.0.0.1:1"),
        )  # fmt: skip


# What it says -------------------------------------------------------------------------------------------------------


def test_progress_is_printed_unless_it_is_asked_to_be_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tune_stn.study.compare.run_study", lambda *_, say, **__: say("a line"))
    said: list[str] = []
    for how in ({}, {"say": None}, {"say": said.append}):
        compare("ridge", ["fixed"], budget=1, seeds=1, out=tmp_path, **how)
    assert capsys.readouterr().out == "a line\n"
    assert said == ["a line"]


# Where its data lies --------------------------------------------------------------------------------------------------


def test_relative_data_is_looked_for_where_the_study_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _from_here({"data_dir": "data", "lr": 0.1}, Cluster()) == {"data_dir": str(tmp_path / "data"), "lr": 0.1}
    assert _from_here({"data_dir": "~/data"}, Cluster()) == {"data_dir": str(Path.home() / "data")}
    assert _from_here({"lr": 0.1}, Cluster()) == {"lr": 0.1}
    sent = Cluster(address="auto", working_dir=tmp_path)
    assert _from_here({"data_dir": "data"}, sent) == {"data_dir": "data"}
