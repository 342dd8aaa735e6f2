"""A recorder in somebody else's run: ten trainables give the results that they give without one; and what it keeps."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune

from tune_stn.study.report import write_report
from tune_stn.study.results import export_results, load_results
from tune_stn.tuning.recording.journal import read_reports
from tune_stn.tuning.recording.recorder import Recorder

Make = Callable[..., Any]
CONFIG = {
    **{"optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True}, "widths": [64, 32], "seed": 3, "hp": {"rate": 0.5}},
    **{"rate": np.int64(2), "clip": None, "collate": len},
}


class Seen(tune.Callback):
    """Keeps what Tune hands to a callback behind the recorder, without clock times and names of processes."""

    def __init__(self) -> None:
        self.results: list[str] = []

    def on_trial_result(self, iteration: int, trials: Sequence[Any], trial: Any, result: Any, **info: Any) -> None:
        ours = ("date", "time", "pid", "hostname", "node_ip", "trial_id", "experiment_tag")
        self.results.append(repr({key: value for key, value in result.items() if not key.startswith(ours)}))


def functions() -> Callable[[dict[str, Any]], None]:
    """Five function trainables behind one, so that one process trains them all; the last one fails."""

    def theirs(config: dict[str, Any]) -> None:
        import numpy as np  # by value, for the workers cannot import this file
        from ray import tune

        for at in range(1, 4):
            if (config["kind"], at) == ("5 fails", 3):
                raise RuntimeError("cannot")
            taken = {
                "status": at,
                "seed": 7,
                "epoch": 10 * at,
                "reason": 0,
                "report_index": -1,
                "cost": -1.0,
                "source": 2,
            }
            own = {
                "1 nested": {"eval": {"acc": 0.5}, "hp": {"rate": 0.1 * at}, "scale": {"grad": 2.0**at}},
                "2 arrays": {"loss": np.array(1 / at), "half": np.float16(0.5), "v": [1, 2]},
                "3 collides": taken | {"val_loss": 9.0, "best_val_loss": 8.0, "segment": 1, "hp/rate": 0.3},
                "4 has none": {"loss": str(at), "nan": float("nan"), "huge": 2**70, "cost_increment": float("inf")},
                "5 fails": {"parent_trial_id": "x", "segment": "y", "status": "good"},
            }
            tune.report({"loss": 1 / at} | own[config["kind"]])

    theirs.__name__ = "theirs"
    return theirs


@pytest.mark.ray
def test_five_functions_give_the_results_that_they_give_without(cluster: Any, tmp_path: Path) -> None:
    """The tables are written at each report, so that none of their names may harm a run in its middle."""
    kinds = ["1 nested", "2 arrays", "3 collides", "4 has none", "5 fails"]
    seen, statuses = [], []
    for callbacks in ([], [Recorder(tmp_path / "record", metric="loss", write_every_s=0.0)]):
        seen.append(Seen())
        analysis = tune.run(
            functions(),
            config={"kind": tune.grid_search(kinds)} | {key: CONFIG[key] for key in ("optimizer", "widths", "seed")},
            callbacks=[*callbacks, seen[-1]],
            storage_path=str(tmp_path / "storage"),
            max_concurrent_trials=1,
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
        )
        statuses.append([trial.status for trial in analysis.trials])
    assert seen[1].results == seen[0].results
    assert len(seen[0].results) == 3 * 4 + 2
    assert statuses == [["TERMINATED"] * 4 + ["ERROR"]] * 2
    (recorder,) = callbacks
    assert recorder.errors == []
    found = load_results(tmp_path / "record")
    assert (found.reports["epoch"].tolist(), found.reports["seed"].unique().tolist()) == ([1, 2, 3] * 4 + [1, 2], [0])
    assert found.reports["val_loss"].notna().tolist() == [True] * 9 + [False] * 3 + [True] * 2
    assert found.reports["cost_total"].is_monotonic_increasing
    export_results(found, tmp_path / "export", "csv")
    for kind, rows in found.reports.groupby("choice/kind"):
        assert rows["status"].iloc[-1] == ("failed" if kind == "5 fails" else "finished")


class Theirs(tune.Trainable):  # type: ignore[misc]
    """Five class trainables: what they report is in the config."""

    def setup(self, config: dict[str, Any]) -> None:
        self.at = 0

    def step(self) -> dict[str, Any]:
        self.at += 1
        kind = self.config["kind"]
        if (kind, self.at) == ("fails", 4):
            raise RuntimeError("cannot")
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        own = {
            "draws": {"loss": draws[0], "numpy": draws[1], "torch": draws[2]},
            "tensors": {"loss": torch.tensor(1 / self.at), "mask": torch.tensor(True), "z": np.array(1j)},
            "collides": {"loss": 1 / self.at, "task": 4, "hp": 3, "best_val_loss": 9.0, "reported/task": 5.0},
            "fails": {"loss": 1 / self.at},
            "moved": {"loss": 1 / self.at, "cost": 2.0 * self.at},
        }
        return own[kind]

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "at").write_text(str(self.at))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.at = int((Path(checkpoint) / "at").read_text())


def trained(kind: str, callbacks: list[Any], folder: Path, fake_trial: Make) -> list[str]:
    """Results of six reports, in this process, as Tune would have them; "moved" goes on elsewhere after the fourth."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    seen, config = Seen(), CONFIG | {"kind": kind}
    experiment = folder / "here"
    trial = fake_trial("a", config=config, path=str(experiment / "dir-a"))
    trainable = Theirs(copy.deepcopy(config))

    def tell(hook: str, **more: Any) -> None:
        one = {} if hook == "on_step_begin" else {"trial": trial}
        for callback in [*callbacks, seen]:
            getattr(callback, hook)(iteration=0, trials=[trial], **one, **more)

    for callback in callbacks:
        callback.setup()
    tell("on_step_begin")
    tell("on_trial_start")
    try:
        for number in range(1, 7):
            result = trainable.train()
            tell("on_trial_result", result=result)
            trial.last_result = result
            if number == 3:
                saved = trainable.save(str(folder / "checkpoint"))
                trial.latest_checkpoint_result = SimpleNamespace(metrics=result)
                tell("on_checkpoint", checkpoint=saved.checkpoint)
            if (kind, number) == ("moved", 4):
                states = [(pickle.dumps(callback), callback.get_state()) for callback in callbacks]
                if experiment.exists():
                    experiment.rename(folder / "there")
                    experiment.write_text("")  # where no folder can be made
                callbacks[:] = [pickle.loads(pickled) for pickled, _ in states]  # noqa: S301
                for callback, (_, state) in zip(callbacks, states, strict=True):
                    callback.set_state(pickle.loads(pickle.dumps(state)))  # noqa: S301
                    callback.setup()
                trial = fake_trial(
                    "a",
                    "PENDING",
                    config=config,
                    path=str(folder / "there" / "dir-a"),
                    last_result=trial.latest_checkpoint_result.metrics,
                    latest_checkpoint_result=trial.latest_checkpoint_result,
                )
                tell("on_step_begin")
                tell("on_trial_start")
                trainable = Theirs(copy.deepcopy(config))
                trainable.restore(saved)
    except RuntimeError:
        tell("on_trial_error")
    else:
        tell("on_trial_complete")
    for callback in callbacks:
        callback.on_experiment_end(trials=[trial])
    return seen.results


@pytest.mark.parametrize("kind", ["draws", "tensors", "collides", "fails", "moved"])
def test_five_classes_give_the_results_that_they_give_without(
    tmp_path: Path, fake_trial: Make, undrawn: None, kind: str
) -> None:
    callbacks = [
        Recorder(tmp_path / "here" / "record", metric="loss", write_every_s=0.0 if kind == "collides" else 60.0)
    ]
    (tmp_path / "here").mkdir()
    seen = trained(kind, callbacks, tmp_path, fake_trial)
    assert seen == trained(kind, [], tmp_path / "without", fake_trial)
    assert len(seen) == {"fails": 3}.get(kind, 6)
    assert callbacks[0].errors == []
    found = load_results(tmp_path / ("there" if kind == "moved" else "here") / "record")
    reports = found.reports
    assert reports["epoch"].tolist() == list(range(1, {"fails": 4, "moved": 6}.get(kind, 7)))
    assert reports["val_loss"].notna().all()
    assert reports["cost_total"].tolist() == [one * {"moved": 2.0}.get(kind, 1.0) for one in reports["epoch"]]
    assert reports["status"].iloc[-1] == ("failed" if kind == "fails" else "finished")
    columns = reports.iloc[-1].filter(regex="^(hp|choice)/").to_dict()
    assert columns == {
        **{"hp/optimizer/lr": 0.1, "hp/seed": 3, "hp/rate": 2, "hp/hp/rate": 0.5, "choice/kind": kind},
        **{"choice/optimizer/name": "sgd", "choice/optimizer/nesterov": "True", "choice/widths": "[64, 32]"},
        "choice/clip": "None",
    }
    if kind == "collides":
        write_report(found)


def of_nothing(experiment: Path) -> dict[str, Any]:
    """What Tune has saved of a recorder whose directory did not come along."""
    line = {"trial_id": "a", "segment": "", "epoch": 7, "training_iteration": 7, "val_loss": 0.5, "wall_time_s": 70.0}
    line |= {"parent_trial_id": "", "status": "running", "step": 7, "device_time_s": 1.0, "hp/lr": 0.1}
    latest = [line | {"cost": 7.0, "cost_total": 7.0}, line | {"trial_id": "b", "cost": 3.0, "cost_total": 10.0}]
    return {"directory": "/gone/record", "experiment": str(experiment), "latest": latest}


@pytest.mark.parametrize("creatable", [True, False])
def test_a_record_that_did_not_come_along_begins_with_what_tune_saved(
    tmp_path: Path, fake_trial: Make, caplog: pytest.LogCaptureFixture, creatable: bool
) -> None:
    """So costs and epochs are right. Where the directory cannot be made, another one is in the experiment's folder."""
    experiment = tmp_path / "experiment"
    experiment.mkdir()
    if not creatable:
        (tmp_path / "old").write_text("")
    recorder = Recorder(tmp_path / "old" / "record", metric="loss")
    recorder.set_state(of_nothing(experiment))
    recorder.setup()
    path = str(experiment / "dir")
    a, b = (fake_trial(name, status, path=path) for name, status in (("a", "PENDING"), ("b", "TERMINATED")))
    recorder.on_step_begin(0, [a, b])
    assert recorder.directory == (tmp_path / "old" if creatable else experiment) / "record"
    assert f"the record of the run that goes on is missing: {recorder.directory} begins with each" in caplog.text
    assert recorder.cost_total == 10.0
    recorder.on_trial_start(0, [a, b], a)
    recorder.on_trial_result(0, [a, b], a, {"loss": 0.25, "training_iteration": 8})
    recorder.on_trial_complete(0, [a, b], a)
    recorder.on_experiment_end([a, b])
    reports = load_results(recorder.directory).reports
    kept = reports[["trial_id", "epoch", "cost", "cost_total", "status"]].to_numpy().tolist()
    assert kept == [["a", 7, 7, 7, "running"], ["b", 7, 3, 10, "finished"], ["a", 8, 8, 11, "finished"]]


def test_a_moved_run_that_had_ended_writes_its_tables_in_the_new_place(tmp_path: Path, fake_trial: Make) -> None:
    """Tune takes no step then, and ends the experiment at once."""
    trial = fake_trial("a", "TERMINATED", path=str(tmp_path / "new" / "dir-a"))
    recorder = Recorder(tmp_path / "old" / "record", metric="loss")
    recorder.set_state(of_nothing(tmp_path / "old") | {"directory": str(recorder.directory)})
    (tmp_path / "old").write_text("")  # where no folder can be made
    (tmp_path / "new").mkdir()
    recorder.setup()
    recorder.on_experiment_end([trial])
    assert recorder.errors == []
    assert load_results(tmp_path / "new" / "record").reports["epoch"].tolist() == [7, 7]


def test_nothing_is_made_before_the_run_starts_and_a_wrong_place_is_refused_then(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a" / "record")
    pickle.loads(pickle.dumps(recorder)).setup()  # noqa: S301
    recorder.setup()
    assert list(tmp_path.iterdir()) == []
    recorder.on_step_begin(0, [])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/record'\): the directory cannot be made \(.*\); give another"):
        Recorder(tmp_path / "file" / "record").on_step_begin(0, [])


def test_an_error_in_recording_is_logged_once_and_ends_nothing_unless_strict(
    tmp_path: Path, fake_trial: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full for three reports: they are not recorded, and the journal is whole."""
    recorder, strict = (Recorder(tmp_path / name, metric="loss", strict=name == "b") for name in "ab")
    trial = fake_trial("a")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    for iteration in range(1, 7):
        with monkeypatch.context() as patch:
            if 2 <= iteration <= 4:
                patch.setattr("os.fsync", full)
            recorder.on_trial_result(0, [trial], trial, {"loss": 1.0, "training_iteration": iteration})
    assert recorder.errors == ["OSError: [Errno 28] No space left on device"] * 3
    (logged,) = caplog.records
    assert logged.exc_info is not None
    assert [line["training_iteration"] for line in read_reports(recorder.path)] == [1, 5, 6]
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        strict.on_trial_result(0, [trial], trial, {"loss": 1.0, "training_iteration": 1})


def test_names_that_are_taken_are_said_once(tmp_path: Path, fake_trial: Make, caplog: pytest.LogCaptureFixture) -> None:
    """And a number that the column of its name holds anyway keeps it; NaN, too."""
    recorder, trial = Recorder(tmp_path, metric="acc", mode="max"), fake_trial("a")
    for at in (1, 2):
        reported = {"acc": 0.5, "val_loss": 9.0, "status": 1, "epoch": at, "step": 0.5, "test_loss": float("nan")}
        recorder.on_trial_result(0, [trial], trial, reported | {"training_iteration": at, "choice/x": 1})
    names = ("val_loss", "status", "step", "choice/x")
    assert caplog.messages == [
        f"the tables have columns named {', '.join(names)} of their own, so what trials report by such a name is in "
        "reported/<name>"
    ]
    line = read_reports(recorder.path)[-1]
    assert [line[f"reported/{name}"] for name in names] == [9.0, 1, 0.5, 1]
    assert [name for name in line if name.startswith("reported/")] == [f"reported/{name}" for name in names]
    assert (line["val_loss"], line["status"], line["epoch"]) == (-0.5, "running", 2)


def test_hyperparameters_that_nobody_has_are_said(
    tmp_path: Path, fake_trial: Make, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, metric="loss", hps=["name", "lr", "typo", "act"])
    trial = fake_trial("a", config={"name": "sgd", "lr": 0.1, "act": len, "other": "x"})
    recorder.on_trial_start(0, [trial], trial)
    for at in (1, 2):
        recorder.on_trial_result(0, [trial], trial, {"loss": 1.0, "training_iteration": at})
    assert caplog.messages == [
        "Recorder(hps=): typo is not in the config of the first trial that reports, which has lr, name, other"
    ]
    line = read_reports(recorder.path)[0]
    chosen = {name: value for name, value in line.items() if name.startswith(("hp/", "choice/"))}
    assert chosen == {"hp/lr": 0.1, "choice/name": "sgd", "choice/act": "<built-in function len>"}


@pytest.mark.parametrize(
    ("costs", "expected"),
    [([1.0, 3.0, 4.5], 4.5), ([float("nan"), 1.0, 2.0], 1.0), ([1.0, float("inf"), 2.0], 1.0), ([-5.0, -7.0], 0.0)],
)
def test_costs_never_fall_and_stay_finite(
    tmp_path: Path, fake_trial: Make, costs: list[float], expected: float
) -> None:
    recorder, trial = Recorder(tmp_path, metric="loss"), fake_trial("a")
    for at, cost in enumerate(costs, start=1):
        result = {"loss": 1.0, "training_iteration": at, "cost": cost}
        recorder.on_trial_result(0, [trial], trial, result)
        trial.last_result = result
    assert recorder.cost_total == expected
