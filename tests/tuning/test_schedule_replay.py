"""Every interval is trained with the schedule's values: undisturbed, after failures, and in a run brought back."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import tune

from tune_stn.training.schedule import Schedule
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.schedule_replay import ScheduleReplay

EPOCHS = 7


def schedule(names: tuple[str, ...], times: list[int], values: list[list[float]], unit: Any = "epoch") -> Schedule:
    return Schedule(names, np.array(times), np.array(values), unit)


SCHEDULE = schedule(("rate", "decay"), [0, 3, 5], [[0.1, 1e-3], [0.5, 1e-3], [0.5, 1e-4]])
RATES = [0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5]
DECAYS = [1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4]


class FakeTrial(SimpleNamespace):
    """What the scheduler reads of Tune's trial."""

    PENDING, PAUSED, TERMINATED = "PENDING", "PAUSED", "TERMINATED"

    def __init__(self, config: dict[str, Any] | None = None, *, status: str = "PENDING", saved: Any = None) -> None:
        super().__init__(config=config or {}, status=status, last_result={}, latest_checkpoint_result=None)
        self.trainable_name, self.trainable = "theirs", Saving
        if saved is not None:
            self.saves(saved)

    def get_trainable_cls(self) -> type[tune.Trainable]:
        return self.trainable

    def is_finished(self) -> bool:
        return self.status == self.TERMINATED

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def saves(self, epoch: int, **metrics: Any) -> None:
        self.latest_checkpoint_result = SimpleNamespace(metrics={"training_iteration": epoch, **metrics})


class Saving(tune.Trainable):
    def save_checkpoint(self, checkpoint_dir: str) -> None: ...


def added(scheduler: ScheduleReplay, trial: FakeTrial) -> dict[str, Any]:
    scheduler.on_trial_add(None, trial)
    return trial.config


def reports(scheduler: ScheduleReplay, trial: FakeTrial, epoch: int, **more: Any) -> str:
    return scheduler.on_trial_result(None, trial, {"training_iteration": epoch, **more})


def chosen(scheduler: ScheduleReplay, *trials: FakeTrial) -> Any:
    return scheduler.choose_trial_to_run(SimpleNamespace(get_trials=lambda: list(trials)))


# Decisions ----------------------------------------------------------------------------------------------------------


def test_a_whole_value_is_an_int_where_the_config_has_one_or_the_schedule_says_so() -> None:
    counts = schedule(("width", "rate", "switch", "layers"), [0, 3], [[8.0, 1.0, 1.0, 2.0], [16.0, 2.0, 0.0, 3.0]])
    for integers, layers in ((frozenset(), "2.0"), (frozenset({"layers"}), "2")):
        config = {"width": 4, "rate": 0.1, "switch": True}
        found = added(ScheduleReplay(replace(counts, integers=integers)), FakeTrial(config))
        assert repr(found) == f"{{'width': 8, 'rate': 1.0, 'switch': 1.0, 'layers': {layers}}}"


def test_pauses_only_where_the_next_interval_has_other_values() -> None:
    scheduler, trial = ScheduleReplay(SCHEDULE), FakeTrial()
    used = []
    for epoch in range(1, EPOCHS + 1):
        if trial.status == trial.PAUSED:
            assert chosen(scheduler, trial) is trial
        if epoch == 1:
            added(scheduler, trial)
        used.append((trial.config["rate"], trial.config["decay"]))
        decision = reports(scheduler, trial, epoch)
        assert decision == (scheduler.PAUSE if epoch in (3, 5) else scheduler.CONTINUE)
        if decision == scheduler.PAUSE:
            trial.status, trial.last_result = trial.PAUSED, {"training_iteration": epoch}
            trial.saves(epoch)
    assert used == list(zip(RATES, DECAYS, strict=True))


@pytest.mark.parametrize(
    ("saved", "rate", "decay"), [(None, 0.1, 1e-3), (2, 0.1, 1e-3), (3, 0.5, 1e-3), (6, 0.5, 1e-4)]
)
def test_the_config_of_a_trial_that_comes_back_is_that_of_its_checkpoint(saved: int, rate: float, decay: float) -> None:
    """Whatever it was set to later, as often as it is added, and by a scheduler that never saw it."""
    trial = FakeTrial({"rate": 9.0, "decay": 9.0, "seed": 1}, saved=saved)
    for scheduler in (ScheduleReplay(SCHEDULE), pickle.loads(pickle.dumps(ScheduleReplay(SCHEDULE)))):  # noqa: S301
        for _ in range(2):
            assert added(scheduler, trial) == {"rate": rate, "decay": decay, "seed": 1}


def test_a_finished_trial_keeps_its_config() -> None:
    assert added(ScheduleReplay(SCHEDULE), FakeTrial({"rate": 9.0}, status="TERMINATED")) == {"rate": 9.0}


def test_values_go_to_a_nested_key_and_leave_shared_configs_alone() -> None:
    shared = {"model": {"hp": {"rate": 9.0, "other": 1}, "width": 8}, "seed": 0}
    before = json.dumps(shared)
    scheduler, trial = ScheduleReplay(SCHEDULE, key="model/hp"), FakeTrial(shared)
    assert added(scheduler, trial) == {
        "model": {"hp": {"rate": 0.1, "decay": 1e-3, "other": 1}, "width": 8},
        "seed": 0,
    }
    assert json.dumps(shared) == before
    assert reports(scheduler, trial, 2) == scheduler.CONTINUE
    assert reports(scheduler, trial, 3) == scheduler.PAUSE
    assert added(ScheduleReplay(SCHEDULE, key="hp"), FakeTrial()) == {"hp": {"rate": 0.1, "decay": 1e-3}}


def test_a_policy_of_tunes_pbt_goes_back_to_where_its_values_came_from(tmp_path: Path) -> None:
    old, new = {"lr": 0.1, "model": {"rate": 0.2}, "name": "x"}, {"lr": 0.3, "model": {"rate": 0.4}, "name": "x"}
    (tmp_path / "pbt_policy_1.txt").write_text(json.dumps(["1", "0", 4, 4, old, new]) + "\n")
    scheduler = ScheduleReplay(Schedule.from_pbt_policy(tmp_path / "pbt_policy_1.txt"))
    assert added(scheduler, FakeTrial({"name": "x", "model": {"width": 8}})) == {
        **old,
        "model": {"rate": 0.2, "width": 8},
    }
    assert added(scheduler, FakeTrial({"name": "x"}, saved=4)) == new


def test_a_step_counter_of_the_reports_can_be_the_time() -> None:
    scheduler = ScheduleReplay(schedule(("rate",), [0, 100, 200], [[0.1], [0.2], [0.3]], "step"), time_attr="steps")
    trial = FakeTrial()
    assert added(scheduler, trial) == {"rate": 0.1}
    assert reports(scheduler, trial, 1, steps=99) == scheduler.CONTINUE
    assert reports(scheduler, trial, 2, steps=250) == scheduler.PAUSE  # both changes at once
    trial.saves(2, steps=250)
    assert added(scheduler, trial) == {"rate": 0.3}


def test_several_trials_follow_the_schedule_each_at_its_own_time() -> None:
    scheduler, early, late = ScheduleReplay(SCHEDULE), FakeTrial({"seed": 0}), FakeTrial({"seed": 1}, saved=5)
    added(scheduler, early)
    added(scheduler, late)
    assert (early.config["rate"], late.config["rate"]) == (0.1, 0.5)
    assert reports(scheduler, late, 6) == scheduler.CONTINUE
    assert reports(scheduler, early, 3) == scheduler.PAUSE


# Errors -------------------------------------------------------------------------------------------------------------


def test_a_schedule_of_steps_needs_a_counter_of_steps() -> None:
    steps = schedule(("rate",), [0, 8], [[0.1], [0.2]], "step")
    with pytest.raises(ValueError, match=r"counts reports: give time_attr= .* schedule\.per_epoch\(\)"):
        ScheduleReplay(steps)
    scheduler, trial = ScheduleReplay(steps, time_attr="steps"), FakeTrial()
    added(scheduler, trial)
    with pytest.raises(ValueError, match=r"no 'steps', .* it has training_iteration, loss"):
        reports(scheduler, trial, 1, loss=1.0)


def test_a_class_that_cannot_save_is_refused_unless_nothing_changes() -> None:
    trial = FakeTrial()
    trial.trainable = tune.Trainable
    with pytest.raises(ValueError, match="theirs has no save_checkpoint"):
        added(ScheduleReplay(SCHEDULE), trial)
    constant = ScheduleReplay(Schedule.constant({"rate": 0.1}))
    assert added(constant, trial) == {"rate": 0.1}
    assert reports(constant, trial, 1) == constant.CONTINUE


@pytest.mark.parametrize("saved", [None, 2])
def test_a_trial_that_saved_nothing_at_a_change_does_not_go_round_in_circles(saved: int | None) -> None:
    trial = FakeTrial(status="PAUSED", saved=saved)
    trial.last_result = {"training_iteration": 3}
    with pytest.raises(ValueError, match=r"saved no checkpoint with its report at training_iteration 3.*tune\.report"):
        chosen(ScheduleReplay(SCHEDULE), trial)


def test_something_else_where_the_values_belong() -> None:
    with pytest.raises(ValueError, match=r"the config has 0\.5 where .* another key="):
        added(ScheduleReplay(SCHEDULE, key="hp"), FakeTrial({"hp": 0.5}))


def test_says_what_it_replays() -> None:
    assert ScheduleReplay(SCHEDULE).debug_string() == "Replaying 2 change(s) of rate, decay by training_iteration"


# With Tune ----------------------------------------------------------------------------------------------------------


def foreign_class() -> type[tune.Trainable]:
    """Adds up the values that it trains with, and notes each; made here so that Ray carries it by value."""

    class Theirs(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.now, self.sums = config, [0.0, 0.0]

        def step(self) -> dict[str, Any]:
            once = Path(self.now["log"]) / "failed"
            if self.iteration + 1 == self.now.get("fail_at") and self.now["seed"] == 1 and not once.exists():
                once.touch()
                raise RuntimeError("a node went away")
            for index, name in enumerate(("rate", "decay")):
                self.sums[index] += self.now[name]
            note = [self.iteration + 1, self.now["rate"], self.now["decay"]]
            with open(Path(self.now["log"]) / f"{self.now['seed']}.jsonl", "a") as file:
                file.write(json.dumps(note) + "\n")
            return {"sums": list(self.sums)}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {"sums": self.sums}

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.sums = checkpoint["sums"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

    return Theirs


def tuner(trainable: Any, folder: Path, *, seeds: int = 1, reuse: bool = False, **run: Any) -> tune.Tuner:
    log = folder / "log"
    log.mkdir()
    return tune.Tuner(
        trainable,
        param_space={"log": str(log), "seed": tune.grid_search(list(range(seeds))), "fail_at": run.pop("fail_at", 0)},
        tune_config=tune.TuneConfig(scheduler=ScheduleReplay(SCHEDULE), reuse_actors=reuse),
        run_config=tune.RunConfig(
            name="run", storage_path=str(folder), stop={"training_iteration": EPOCHS}, verbose=0, **run
        ),
    )


def notes(folder: Path, seed: int = 0) -> list[list[float]]:
    return [json.loads(line) for line in (folder / "log" / f"{seed}.jsonl").read_text().splitlines()]


def assert_replayed(folder: Path, result: Any, seed: int = 0) -> None:
    """Each epoch, however often it was trained, had the schedule's values; what was learnt is of one pass."""
    assert result.error is None
    assert result.metrics["training_iteration"] == EPOCHS
    assert result.metrics["sums"] == pytest.approx([sum(RATES), sum(DECAYS)], rel=1e-12)
    expected = {epoch: [RATES[epoch - 1], DECAYS[epoch - 1]] for epoch in range(1, EPOCHS + 1)}
    assert {epoch for epoch, *_ in notes(folder, seed)} == set(expected)
    for epoch, *values in notes(folder, seed):
        assert values == expected[int(epoch)]


@pytest.mark.ray
def test_classes_side_by_side_one_of_which_fails(cluster: Cluster, tmp_path: Path) -> None:
    """It fails in epoch 5, between two changes, and goes back to the checkpoint of the first, after epoch 3."""
    failures = tune.FailureConfig(max_failures=1)
    found = tuner(foreign_class(), tmp_path, seeds=2, reuse=True, fail_at=5, failure_config=failures).fit()
    assert (tmp_path / "log" / "failed").exists()
    for result in found:
        assert_replayed(tmp_path, result, result.config["seed"])
    assert [epoch for epoch, *_ in notes(tmp_path, 0)] == [1, 2, 3, 4, 5, 6, 7]
    assert [epoch for epoch, *_ in notes(tmp_path, 1)] == [1, 2, 3, 4, 4, 5, 6, 7]


@pytest.mark.ray
def test_a_function_that_fails(cluster: Cluster, tmp_path: Path) -> None:
    def theirs(config: dict[str, Any]) -> None:
        state = {"epoch": 0, "sums": [0.0, 0.0]}
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as directory:
                state = json.loads((Path(directory) / "state.json").read_text())
        while state["epoch"] < EPOCHS:
            if state["epoch"] == 5 and not (Path(config["log"]) / "failed").exists():
                (Path(config["log"]) / "failed").touch()
                raise RuntimeError("a node went away")
            state["epoch"] += 1
            state["sums"] = [state["sums"][0] + config["rate"], state["sums"][1] + config["decay"]]
            with open(Path(config["log"]) / "0.jsonl", "a") as file:
                file.write(json.dumps([state["epoch"], config["rate"], config["decay"]]) + "\n")
            directory = Path(config["log"]) / "state"
            directory.mkdir(exist_ok=True)
            (directory / "state.json").write_text(json.dumps(state))
            tune.report({"sums": state["sums"]}, checkpoint=tune.Checkpoint.from_directory(str(directory)))

    found = tuner(theirs, tmp_path, failure_config=tune.FailureConfig(max_failures=1)).fit()
    assert (tmp_path / "log" / "failed").exists()
    assert_replayed(tmp_path, found[0])


class Interruption(tune.Callback):
    """Presses Ctrl-C at the report of an epoch, once."""

    def __init__(self, epoch: int, folder: Path) -> None:
        self.epoch, self.pressed = epoch, folder / "pressed"

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if result["training_iteration"] == self.epoch and not self.pressed.exists():
            self.pressed.touch()
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.ray
def test_a_run_that_is_brought_back(cluster: Cluster, tmp_path: Path) -> None:
    trainable = foreign_class()
    tuner(trainable, tmp_path, callbacks=[Interruption(4, tmp_path)]).fit()
    assert [epoch for epoch, *_ in notes(tmp_path)][:4] == [1, 2, 3, 4]
    found = tune.Tuner.restore(str(tmp_path / "run"), trainable=trainable).fit()
    assert_replayed(tmp_path, found[0])


@pytest.mark.ray
def test_a_function_without_checkpoints_ends_the_run_at_the_first_change(cluster: Cluster, tmp_path: Path) -> None:
    def theirs(config: dict[str, Any]) -> None:
        for _ in range(EPOCHS):
            tune.report({"loss": config["rate"]})

    with pytest.raises(ValueError, match="saved no checkpoint with its report at training_iteration 3"):
        tuner(theirs, tmp_path).fit()
