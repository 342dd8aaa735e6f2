"""A trial: reports, exact restore, damage, copies of other trials, reuse of a process, Tune's two doors."""

from __future__ import annotations

import logging
import math
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ray import tune
from ray.tune.search import BasicVariantGenerator

from tune_stn.data.source import DataError
from tune_stn.tasks import get_task
from tune_stn.training import CheckpointError
from tune_stn.training.schedule_buffer import TRIAL
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.trainable import SCHEDULE_FILE, STATE_FILE, STNTrainable

SMALL = {
    "task": "digits-mlp",
    "algorithm": "stn",
    "seed": 3,
    "epochs": 5,
    "warmup_epochs": 0,
    "train_images": 100,
    "hidden": 16,
    "test_every": 1,  # so that whoever compares reports compares these figures, too
}
MEASURED = ("device_time_s", "device_time_increment_s", "peak_memory_bytes")
OURS = (
    "epoch",
    "step",
    "cost",
    "train_loss",
    "val_loss",
    "test_loss",
    "device_time_s",
    "val_accuracy",
    "test_accuracy",
)


class Named(STNTrainable):
    """A trial with a name, which Tune gives to those that it starts."""

    @property
    def trial_id(self) -> str:
        return str(getattr(self, "name", "mine"))


def test_a_trial_stays_where_the_script_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune moves each process to a folder of its own, from where a relative `data_dir` leads nowhere."""
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path / "moved")
    monkeypatch.setenv("TUNE_ORIG_WORKING_DIR", str(tmp_path))
    with pytest.raises(DataError, match="Fashion-MNIST not found in data;"):
        trial(task="fashion-mnist-mlp", data_dir="data", hidden=16)
    assert Path.cwd() == tmp_path


def trial(name: str = "mine", **config: Any) -> Named:
    made = Named(SMALL | config)
    made.name = name
    return made


def steps(one: STNTrainable, epochs: int) -> list[dict[str, Any]]:
    """Reports without their times."""
    return [{k: v for k, v in one.step().items() if k not in MEASURED} for _ in range(epochs)]


def save(one: STNTrainable, folder: Path) -> Path:
    folder.mkdir(parents=True)
    one.save_checkpoint(str(folder))
    return folder


def same_weights(one: STNTrainable, other: STNTrainable) -> bool:
    a, b = one.trainer.model.state_dict(), other.trainer.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Reports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["fixed", "stn"])
def test_reports_have_the_same_keys_until_the_trial_ends_itself(algorithm: str) -> None:
    one = trial(algorithm=algorithm)
    reports = [one.step() for _ in range(5)]
    assert all(list(report) == list(reports[0]) for report in reports)
    names = get_task("digits-mlp").space
    assert {*OURS, *(f"hp/{name}" for name in names), *(f"scale/{name}" for name in names)} < set(reports[0])
    assert [report["done"] for report in reports] == [False] * 4 + [True]
    assert [report["status"] for report in reports] == ["running"] * 4 + ["finished"]
    assert reports[-1]["cost"] == pytest.approx(sum(report["cost_increment"] for report in reports))
    assert reports[-1]["device_time_s"] == pytest.approx(sum(report["device_time_increment_s"] for report in reports))
    best = math.inf
    for report in reports:
        best = min(best, report["val_loss"])
        assert report["best_val_loss"] == best


@pytest.mark.parametrize(("settings", "said"), [({"warmup_epochs": 2, "train_steps": 9}, True), ({}, False)])
def test_a_run_too_short_for_a_hyper_step_says_so(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any], said: bool
) -> None:
    """One without them on purpose, all of it a warm-up, has nothing to say."""
    for warmup, loud in ((settings, said), ({**settings, "warmup_epochs": 3}, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trial(algorithm="auto", **{"epochs": 3, "warmup_epochs": 1, "train_steps": 2, **warmup})
        assert ("auto tunes nothing on task 'digits-mlp': a run of 3 epochs" in caplog.text) == loud


def test_divergence_ends_the_trial_with_its_reason() -> None:
    one = trial(lr=1e6, clip_norm=None, restarts=0, algorithm="fixed")
    report = one.step()
    while not report["done"]:
        report = one.step()
    assert report["status"] == "diverged"
    assert "loss became" in report["reason"]
    assert report["val_loss"] == math.inf
    assert report["epoch"] < 5


def test_the_end_of_patience_ends_the_trial() -> None:
    made = trial(algorithm="fixed", patience=1, lr=1e-12, epochs=50)  # nothing is learned
    reports = [made.train()]
    while not reports[-1]["done"]:
        reports.append(made.train())
    assert len(reports) <= 5  # where rounding improves the loss, it goes on
    assert [report["status"] for report in reports] == ["running"] * (len(reports) - 1) + ["finished"]
    assert made.trainer.finished.startswith("no better validation loss in 1 epochs")


def test_a_restart_is_reported_where_it_happened() -> None:
    one = trial(algorithm="stn")
    one.step()
    run, calls = one.trainer._run_epoch, iter([True])

    def diverging_once() -> tuple[float, dict[str, float]]:
        train_loss, report = run()
        return (math.nan if next(calls, False) else train_loss), report

    one.trainer._run_epoch = diverging_once  # type: ignore[method-assign]
    report = one.step()
    assert (report["status"], report["epoch"]) == ("running", 2)
    assert "loss became nan in epoch 2; went back to the end of epoch 1" in report["reason"]
    assert one.step()["reason"] == ""


def test_defaults_are_self_tuning_at_seed_0_from_the_tasks_start() -> None:
    one = STNTrainable({"task": "digits-mlp"})
    assert (one.trainer.rule.name, one.trainer.seed) == ("stn", 0)
    assert one.trainer.hp == get_task("digits-mlp").start


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"algorithm": "stn"}, "config has no 'task'"),
        ({"task": "digits"}, "unknown task 'digits'"),
        (
            {"task": "digits-mlp", "algorithm": "sgd"},
            "unknown algorithm 'sgd'; accepted are auto, stn, delta-stn, progress-ratio, fixed",
        ),
        ({"task": "digits-mlp", "hp": {"dropout": 0.1}}, "unknown hyperparameter 'dropout'"),
        ({"task": "digits-mlp", "hp": {"dropout_1": 2}}, r"2 of 'dropout_1' is outside \[0, 0.9\]"),
        ({"task": "digits-mlp", "hp": {"lr": 0.1}}, "'lr' cannot be tuned inside a run.*param_space"),
        ({"task": "digits-mlp", "epoch": 3}, "unknown setting 'epoch'"),
    ],
)
def test_a_wrong_config_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STNTrainable(config)


# Restore ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_a_restored_trial_goes_on_bit_for_bit(tmp_path: Path, algorithm: str) -> None:
    whole, part = trial(algorithm=algorithm), trial(algorithm=algorithm)
    expected = steps(whole, 5)
    steps(part, 2)
    checkpoint = save(part, tmp_path / "checkpoint_000000")
    again = trial(algorithm=algorithm)
    again.load_checkpoint(str(checkpoint))  # type: ignore[arg-type]
    assert again.trainer.device_time_s == part.trainer.device_time_s
    assert steps(again, 3) == expected[2:]
    assert same_weights(again, whole)
    ends = [save(one, tmp_path / name) / SCHEDULE_FILE for one, name in ((whole, "whole"), (again, "again"))]
    assert pq.read_table(ends[0]).equals(pq.read_table(ends[1]))
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_the_schedule_file_holds_every_change(tmp_path: Path) -> None:
    one = trial()
    steps(one, 3)
    frame = pq.read_table(save(one, tmp_path / "c") / SCHEDULE_FILE).to_pandas()
    assert list(frame) == ["step", "epoch", "hp", "value", "raw", "scale", "source"]
    assert frame["source"].drop_duplicates().tolist() == ["start", "stn"]
    assert frame["step"].max() == one.trainer.step
    last = frame[frame["step"] == one.trainer.step].set_index("hp")["value"]
    assert last.to_dict() == pytest.approx(one.trainer.model.hyper.mean_values())


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:500] + b"\x7f" + path.read_bytes()[501:]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = trial()
    reports = steps(one, 1)
    save(one, tmp_path / "checkpoint_000000")
    reports += steps(one, 1)
    save(one, tmp_path / "checkpoint_000001")
    reports += steps(one, 1)
    newest = save(one, tmp_path / "checkpoint_000002")
    save(one, tmp_path / "checkpoint_000003")  # newer than the one asked for: of no use
    DAMAGES[damage](newest / STATE_FILE)
    again = trial()
    with caplog.at_level(logging.WARNING):
        again.load_checkpoint(str(newest))  # type: ignore[arg-type]
    assert again.trainer.epoch == 2
    assert str(newest / STATE_FILE) in caplog.text
    assert "going on from the older" in caplog.text
    assert str(tmp_path / "checkpoint_000001") in caplog.text
    assert steps(again, 1) == reports[2:]


def test_with_no_good_checkpoint_the_newest_is_named(tmp_path: Path) -> None:
    one = trial()
    steps(one, 1)
    folders = [save(one, tmp_path / f"checkpoint_00000{i}") for i in range(2)]
    for folder in folders:
        DAMAGES["cut"](folder / STATE_FILE)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        trial().load_checkpoint(str(folders[1]))  # type: ignore[arg-type]
    assert str(folders[1] / STATE_FILE) in str(caught.value)


def test_a_checkpoint_that_tune_has_deleted_since_is_replaced_by_the_newest(tmp_path: Path) -> None:
    """A killed driver's last word about a trial may be behind the trial; a good one is taken as it is."""
    one = trial()
    reports = steps(one, 1)
    folders = []
    for number in range(3):
        folders.append(save(one, tmp_path / f"checkpoint_00000{number}"))
        reports += steps(one, 1)
    shutil.rmtree(folders[0])
    again = trial()
    again.restore(tune.Checkpoint.from_directory(str(folders[0])))
    assert again.trainer.epoch == 3
    assert steps(again, 1) == reports[3:]
    again.restore(tune.Checkpoint.from_directory(str(folders[1])))
    assert again.trainer.epoch == 2
    with pytest.raises(ValueError, match="does not exist"):
        again.restore(tune.Checkpoint.from_directory(str(tmp_path / "other" / "checkpoint_000000")))


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_a_checkpoint_is_not_executed(tmp_path: Path, writer: str) -> None:
    folder, mark = tmp_path / "checkpoint_000000", tmp_path / "executed"
    folder.mkdir()
    if writer == "torch":
        torch.save({"format": 1, "trainer": Malicious(mark)}, folder / STATE_FILE)
    else:
        (folder / STATE_FILE).write_bytes(pickle.dumps(Malicious(mark)))
    one = trial()
    with pytest.raises(CheckpointError, match=STATE_FILE):
        one.restore(tune.Checkpoint.from_directory(str(folder)))
    assert not mark.exists()


# Copies of other trials ---------------------------------------------------------------------------------------------


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A checkpoint of the fixed trial "better", after two epochs."""
    better = trial("better", algorithm="fixed", hp={"dropout_1": 0.3})
    steps(better, 2)
    return save(better, tmp_path / "better" / "checkpoint_000000")


def copied(parent: Path, name: str = "worse", dropout: float = 0.6) -> Named:
    one = trial(name, algorithm="fixed", hp={"dropout_1": dropout})
    one.load_checkpoint(str(parent))  # type: ignore[arg-type]
    return one


def test_a_copy_names_its_parent_and_keeps_its_own_hyperparameters(parent: Path) -> None:
    one = copied(parent)
    report = one.step()
    assert report["parent_trial_id"] == "better"
    assert report["segment"] != ""
    assert report["epoch"] == 3
    assert report["hp/dropout_1"] == pytest.approx(0.6)
    better = trial("better", algorithm="fixed", hp={"dropout_1": 0.3})
    better.load_checkpoint(str(parent))  # type: ignore[arg-type]
    assert (better.parent_trial_id, better.segment) == ("", "")
    assert better.step()["hp/dropout_1"] == pytest.approx(0.3)


def test_a_copy_keeps_its_name_when_it_is_itself_restored(parent: Path, tmp_path: Path) -> None:
    first = copied(parent)
    assert copied(parent).segment == first.segment  # the same copy after a failure
    assert copied(parent, dropout=0.7).segment != first.segment  # explored otherwise
    assert copied(parent, name="third").segment != first.segment
    steps(first, 1)
    checkpoint = save(first, tmp_path / "worse" / "checkpoint_000000")
    again = copied(checkpoint)
    assert (again.segment, again.parent_trial_id) == (first.segment, "better")
    assert steps(again, 2) == steps(first, 2)
    grandchild = copied(checkpoint, name="last")
    assert grandchild.parent_trial_id == "worse"
    assert grandchild.segment != first.segment


def test_a_self_tuning_copy_takes_the_hyperparameters_of_the_checkpoint(tmp_path: Path) -> None:
    better = trial("better")
    steps(better, 2)
    checkpoint = save(better, tmp_path / "checkpoint_000000")
    one = trial("worse", hp={"dropout_1": 0.6})
    one.load_checkpoint(str(checkpoint))  # type: ignore[arg-type]
    assert one.parent_trial_id == "better"
    child, original = one.step(), better.step()
    assert {k: v for k, v in child.items() if k.startswith(("hp/", "scale/", "val_"))} == {
        k: v for k, v in original.items() if k.startswith(("hp/", "scale/", "val_"))
    }


def test_a_schedule_begun_by_another_trial_is_nobodys(tmp_path: Path) -> None:
    def owner(checkpoint: Path) -> bytes:
        return pq.read_schema(checkpoint / SCHEDULE_FILE).metadata[TRIAL]

    better = trial("better")
    steps(better, 1)
    checkpoint = save(better, tmp_path / "checkpoint_000000")
    assert owner(checkpoint) == b"better"
    child = trial("worse")
    child.load_checkpoint(str(checkpoint))  # type: ignore[arg-type]
    checkpoint = save(child, tmp_path / "checkpoint_000001")
    assert owner(checkpoint) == b""
    again = trial("worse")
    again.load_checkpoint(str(checkpoint))  # type: ignore[arg-type]
    assert owner(save(again, tmp_path / "checkpoint_000002")) == b""


# Reuse of a process -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{}, {"algorithm": "fixed", "hp": {"dropout_1": 0.5}}, {"seed": 4}, {"train_images": 120}, {"lr": 0.01}],
    ids=["same", "algorithm", "seed", "data", "lr"],
)
def test_a_reused_process_gives_what_a_fresh_one_gives(tmp_path: Path, change: dict[str, Any]) -> None:
    reused = trial()
    steps(reused, 2)
    reused.parent_trial_id = reused.segment = "of the trial before"
    assert reused.reset_config(SMALL | change) is True
    fresh = trial(**change)
    assert steps(reused, 5) == steps(fresh, 5)
    assert same_weights(reused, fresh)
    files = [save(one, tmp_path / name) / SCHEDULE_FILE for one, name in ((reused, "reused"), (fresh, "fresh"))]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_reused_process_loads_data_again_only_where_they_differ() -> None:
    one = trial()
    splits = one.trainer.splits
    one.reset_config(SMALL | {"hp": {"dropout_1": 0.5}})
    assert torch.equal(one.trainer.splits.train.inputs, splits.train.inputs)
    assert one.trainer.splits.train.inputs.data_ptr() == splits.train.inputs.data_ptr()
    one.reset_config(SMALL | {"seed": 4})
    assert not torch.equal(one.trainer.splits.train.inputs, splits.train.inputs)


# Tune ---------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_tune_run(cluster: Cluster, tmp_path: Path) -> None:
    """The first example of the design, in a smaller network."""
    analysis = tune.run(
        STNTrainable,
        config={**SMALL, "epochs": 50},
        stop={"epoch": 3},
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        storage_path=str(tmp_path),
        verbose=0,
    )
    (one,) = analysis.trials
    assert one.status == "TERMINATED"
    assert (one.last_result["epoch"], one.last_result["status"]) == (3, "running")
    expected = steps(trial(epochs=50), 3)[-1]
    found = {key: one.last_result[key] for key in expected}
    assert found == expected | {"done": True}  # in another process, bit for bit
    with one.checkpoint.as_directory() as folder:
        assert {STATE_FILE, SCHEDULE_FILE} <= set(os.listdir(folder))


@pytest.mark.ray
def test_tuner_with_the_learning_rate_tuned_from_outside(cluster: Cluster, tmp_path: Path) -> None:
    """The second example of the design: start values and learning rate from a searcher, a cost to stop at."""
    task = get_task("digits-mlp")
    tuner = tune.Tuner(
        tune.with_resources(STNTrainable, {"cpu": 1}),
        param_space={**SMALL, "response": "gate", "hp": task.space.to_tune(), "lr": tune.loguniform(1e-3, 1e-1)},
        tune_config=tune.TuneConfig(
            metric="val_loss", mode="min", search_alg=BasicVariantGenerator(random_state=0), num_samples=2
        ),
        run_config=tune.RunConfig(stop={"cost": 2.5}, storage_path=str(tmp_path), verbose=0),
    )
    grid = tuner.fit()
    assert not grid.errors
    assert len(grid) == 2
    seen = set()
    for found in grid:
        assert found.metrics is not None
        assert found.config is not None
        assert found.metrics["epoch"] == 2
        assert 1e-3 <= found.config["lr"] <= 1e-1
        assert all(domain.contains(found.metrics[f"hp/{name}"]) for name, domain in task.space.items())
        expected = steps(trial(response="gate", lr=found.config["lr"], hp=found.config["hp"]), 2)[-1]
        assert {key: found.metrics[key] for key in expected} == expected | {"done": True}
        seen.add(found.config["lr"])
    assert len(seen) == 2
    assert grid.get_best_result().metrics["val_loss"] == min(one.metrics["val_loss"] for one in grid)  # type: ignore[index]
