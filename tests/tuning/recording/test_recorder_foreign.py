"""The recorder on trainables that know nothing of it: unit tests with stand-ins, and two runs of Ray Tune."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from tune_stn.study.results import load_results
from tune_stn.tuning.recording.journal import read_reports
from tune_stn.tuning.recording.recorder import Recorder

Make = Callable[..., Any]


def result(iteration: int, **more: Any) -> dict[str, Any]:
    tunes_own = {"training_iteration": iteration, "time_total_s": 9.0, "done": False, "config": {"lr": 99.0}}
    return {"loss": 1.0 / iteration, "eval": {"accuracy": 0.5}, **tunes_own, **more}


def test_columns_are_counted_on_the_driver(tmp_path: Path, fake_trial: Make) -> None:
    recorder = Recorder(tmp_path, metric="loss")
    trial = fake_trial("a", config={"lr": 0.1, "net": {"width": 8, "kind": "wide"}})
    recorder.on_trial_start(0, [trial], trial)
    for iteration in (1, 2):
        recorder.on_trial_result(0, [trial], trial, result(iteration))
    first, second = read_reports(recorder.path)
    assert {name: value for name, value in second.items() if value == value and name != "wall_time_s"} == {
        **{"trial_id": "a", "segment": "", "parent_trial_id": "", "status": "running", "training_iteration": 2},
        **{"epoch": 2, "step": 2, "cost": 2.0, "cost_total": 2.0, "loss": 0.5, "eval/accuracy": 0.5, "val_loss": 0.5},
        **{"hp/lr": 0.1, "hp/net/width": 8, "choice/net/kind": "wide"},
    }
    assert {name for name, value in first.items() if value != value} == {"train_loss", "test_loss", "device_time_s"}
    assert second["wall_time_s"] >= first["wall_time_s"] >= 0


def test_their_own_counts_are_taken_without_what_a_checkpoint_brought(tmp_path: Path, fake_trial: Make) -> None:
    recorder = Recorder(tmp_path, metric="loss", columns={"cost": "gpu/hours", "step": "batches"})
    parent = fake_trial("b", config={"lr": 0.5})
    trial = fake_trial("a", config={"lr": 0.1})
    recorder.on_trial_start(0, [trial, parent], trial)
    first = result(1, gpu={"hours": 3.0}, batches=30)
    recorder.on_trial_result(0, [trial, parent], trial, first)
    copy = fake_trial(
        "a", config={"lr": 0.6}, checkpoint_of="b", last_result=result(8, gpu={"hours": 20.0}, batches=80)
    )
    recorder.on_trial_start(0, [copy, parent], copy)
    recorder.on_trial_result(0, [copy, parent], copy, result(9, gpu={"hours": 22.0}, batches=90))
    lines = read_reports(recorder.path)
    assert [(one["cost"], one["cost_total"], one["epoch"], one["step"]) for one in lines] == [
        (3, 3, 1, 30),
        (5, 5, 2, 90),
    ]
    recorder.on_experiment_end([copy, parent])
    schedule = load_results(tmp_path).schedule
    columns = ["step", "epoch", "value", "source", "parent_trial_id"]
    assert schedule[columns].fillna("").to_numpy().tolist() == [[0, 0, 0.1, "fixed", ""], [80, 1, 0.6, "explore", "b"]]


def test_a_repetition_that_differs_takes_the_place_and_is_not_charged(tmp_path: Path, fake_trial: Make) -> None:
    heard: list[int] = []
    recorder = Recorder(tmp_path, metric="loss", on_report=lambda line, total: heard.append(line["epoch"]))
    trial = fake_trial("a")
    for iteration, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.8), (3, 0.6), (4, 0.5)):
        recorder.on_trial_result(0, [trial], trial, result(iteration, loss=loss))
    assert heard == [1, 2, 3, 4]
    assert recorder.cost_total == 4.0
    recorder.on_experiment_end([trial])
    reports = load_results(tmp_path).reports
    assert reports["val_loss"].tolist() == [0.9, 0.8, 0.6, 0.5]
    assert reports["cost_total"].tolist() == [1, 2, 3, 4]


def test_a_run_without_the_metric_is_warned_of_once(
    tmp_path: Path, fake_trial: Make, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path)
    with caplog.at_level(logging.WARNING):
        for iteration in (1, 2):
            recorder.on_trial_result(0, [], fake_trial("a"), result(iteration))
    assert len(caplog.messages) == 1
    assert "no number 'val_loss'" in caplog.text
    assert "Recorder(metric=): loss, eval/accuracy" in caplog.text
    recorder.on_experiment_end([])
    assert load_results(tmp_path).incumbent.empty
    assert load_results(tmp_path).reports["loss"].tolist() == [1.0, 0.5]


def test_tables_are_written_now_and_then(tmp_path: Path, fake_trial: Make) -> None:
    trial = fake_trial("a")
    for name, every, written in (("always", 0.0, True), ("seldom", 60.0, False), ("never", None, False)):
        recorder = Recorder(tmp_path / name, metric="loss", write_every_s=every)
        recorder.on_trial_result(0, [trial], trial, result(1))
        assert (tmp_path / name / "study.json").exists() is written
        recorder.on_experiment_end([trial])
        assert (tmp_path / name / "study.json").exists() is (every is not None)
    assert load_results(tmp_path / "seldom").reports["status"].tolist() == ["stopped"]


# Runs ---------------------------------------------------------------------------------------------------------------


def their_class() -> type[tune.Trainable]:
    """Made in a function, so that workers need not import this file."""

    class Theirs(tune.Trainable):
        """Loss falls the faster, the nearer lr is to 0.3; nobody needs `wd`."""

        def setup(self, config: dict[str, Any]) -> None:
            self.loss = 1.0

        def step(self) -> dict[str, Any]:
            self.loss *= 0.5 + abs(self.config["opt"]["lr"] - 0.3)
            return {"mean_loss": self.loss, "lr_used": self.config["opt"]["lr"]}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / "loss").write_text(repr(self.loss))

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.loss = float((Path(checkpoint) / "loss").read_text())

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

    return Theirs


@pytest.mark.ray
def test_copies_of_ray_tunes_population_are_as_it_logs_them(cluster: Any, tmp_path: Path) -> None:
    random.seed(4)  # all the seed that Ray's PBT takes
    mutations = {"opt": {"lr": tune.uniform(0.0, 0.5)}, "wd": [1, 2, 3]}
    analysis = tune.run(
        their_class(),
        config={"opt": {"lr": tune.grid_search([0.0, 0.1, 0.2, 0.3]), "name": "sgd"}, "wd": 2},
        scheduler=PopulationBasedTraining(
            metric="mean_loss",
            mode="min",
            time_attr="training_iteration",
            perturbation_interval=2,
            hyperparam_mutations=mutations,
        ),
        stop={"training_iteration": 8},
        callbacks=[Recorder(tmp_path / "record", metric="mean_loss", method="pbt", seed=4)],
        storage_path=str(tmp_path / "storage"),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        reuse_actors=True,
        verbose=0,
    )
    found = load_results(tmp_path / "record")
    names = [trial.trial_id for trial in analysis.trials]
    log = (Path(analysis.trials[0].local_experiment_path) / "pbt_global.txt").read_text().splitlines()
    logged = []  # by copy: trial, parent, and value and source of each hyperparameter
    for entry in map(json.loads, log):
        to, of = (names[int(tag.split("_")[0])] for tag in entry[:2])
        old, new = ({"opt/lr": config["opt"]["lr"], "wd": config["wd"]} for config in entry[4:])
        sources = {hp: "exploit" if old[hp] == new[hp] else "explore" for hp in new}
        logged.append((to, of, *((new[hp], sources[hp]) for hp in ("opt/lr", "wd"))))
    assert logged

    schedule = found.schedule
    starts = schedule[schedule["source"] == "fixed"]
    assert starts.groupby("trial_id")["hp"].apply(list).tolist() == [["opt/lr", "wd"]] * 4
    assert (starts[["step", "epoch"]] == 0).all(axis=None)
    copies = schedule[schedule["source"] != "fixed"]
    recorded = []
    for (trial, epoch), rows in copies.groupby(["trial_id", "epoch"], sort=False):
        after = found.reports[(found.reports["trial_id"] == trial) & (found.reports["epoch"] == epoch + 1)]
        values = zip(rows["value"], rows["source"], strict=True)
        recorded.append((trial, rows["parent_trial_id"].iloc[0], *values))
        # What a copy says is what the next report was made with.
        assert after["lr_used"].tolist() == after["hp/opt/lr"].tolist() == [rows["value"].iloc[0]]
    assert sorted(recorded) == sorted(logged)

    reports = found.reports
    assert reports["cost_total"].tolist() == list(range(1, len(reports) + 1))
    for _, rows in reports.groupby("trial_id"):
        assert rows["epoch"].tolist() == list(range(1, len(rows) + 1))
        assert rows["status"].tolist() == ["running"] * (len(rows) - 1) + ["finished"]
        assert rows["training_iteration"].iloc[-1] == 8
    assert found.incumbent["best_val_loss"].iloc[-1] == reports["mean_loss"].min()
    assert (found.study["task"], found.study["methods"], found.study["seeds"]) == ("Theirs", ["pbt"], [4])


def their_function(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Trial "once" fails at its third report and saves at each even one; "always" fails after its first."""

    def theirs(config: dict[str, Any]) -> None:
        checkpoint, began = tune.get_checkpoint(), 0
        if checkpoint is not None:
            with checkpoint.as_directory() as directory:
                began = int((Path(directory) / "at").read_text())
        again = (folder / config["name"]).exists()
        for at in range(began + 1, 6):
            if at == {"once": 4, "always": 2}[config["name"]] and (config["name"] == "always" or not again):
                (folder / config["name"]).touch()
                raise RuntimeError(f"{config['name']} cannot do {at}")
            saved = folder / f"{config['name']}-{at}"
            saved.mkdir(exist_ok=True)
            (saved / "at").write_text(str(at))
            kept = tune.Checkpoint.from_directory(str(saved)) if at % 2 == 0 else None
            tune.report({"loss": 1.0 / at - 0.01 * again, "x": config["x"]}, checkpoint=kept)

    return theirs


@pytest.mark.ray
def test_trials_that_fail_for_good_and_for_once(cluster: Any, tmp_path: Path) -> None:
    """Report 3 of "once" is made twice, of which the later stands; "always" ends with its one report."""
    folder = tmp_path / "notes"
    folder.mkdir()
    tune.Tuner(
        their_function(folder),
        param_space={"name": tune.grid_search(["once", "always"]), "x": 0.5},
        tune_config=tune.TuneConfig(metric="loss", mode="min"),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "storage"),
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[Recorder(tmp_path / "record", metric="loss", task="mine")],
            verbose=0,
        ),
    ).fit()
    found = load_results(tmp_path / "record")
    (always, reason), *others = found.study["failures"].items()
    assert others == []
    assert "always cannot do 2" in reason
    once = found.reports[found.reports["trial_id"] != always]
    assert once["loss"].tolist() == pytest.approx([1, 1 / 2, 1 / 3 - 0.01, 1 / 4 - 0.01, 1 / 5 - 0.01])
    assert once["epoch"].tolist() == once["cost"].tolist() == [1, 2, 3, 4, 5]
    assert once["status"].tolist() == ["running"] * 4 + ["finished"]
    failed = found.reports[found.reports["trial_id"] == always]
    assert failed[["epoch", "status"]].to_numpy().tolist() == [[1, "failed"]]
    assert found.reports["cost_total"].max() == 6
    assert found.schedule[["hp", "value", "source"]].drop_duplicates().to_numpy().tolist() == [["x", 0.5, "fixed"]]
    assert set(found.reports["task"]) == {"mine"}
