"""A run keeps to its slots: what the scheduler around another one shows and chooses, and what comes of it on Ray."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator

from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.failures import Failures
from tune_stn.tuning.slots import InSlots

PENDING, RUNNING, PAUSED = "PENDING", "RUNNING", "PAUSED"


class Trial:
    def __init__(self, status: str = PENDING) -> None:
        self.status = status

    def set_status(self, status: str) -> None:
        self.status = status


def around(kind: type[Any], monkeypatch: pytest.MonkeyPatch, slots: int = 2) -> tuple[InSlots, list[list[str]], Any]:
    """A scheduler around one that notes how trials look when it is to choose, and chooses the first that waits."""
    seen: list[list[str]] = []
    trials: list[Trial] = []
    ended = ("TERMINATED", "ERROR")
    controller = SimpleNamespace(
        get_trials=lambda: trials, get_live_trials=lambda: {trial for trial in trials if trial.status not in ended}
    )

    def choose(self: Any, controller: Any) -> Any:
        seen.append([trial.status for trial in trials])
        return next((trial for trial in trials if trial.status in (PENDING, PAUSED)), None)

    monkeypatch.setattr(kind, "choose_trial_to_run", choose)
    monkeypatch.setattr(kind, "on_trial_add", lambda *_: None)
    more = {"hyperparam_mutations": {"a": [1]}} if kind is PopulationBasedTraining else {}
    return InSlots(kind(metric="loss", mode="min", **more), slots), seen, controller


@pytest.mark.parametrize(("kind", "look"), [(HyperBandScheduler, PENDING), (PopulationBasedTraining, PAUSED)])
def test_trials_begin_when_a_slot_is_free(monkeypatch: pytest.MonkeyPatch, kind: type[Any], look: str) -> None:
    """HyperBand takes new trials only if they look pending; else Tune would start them."""
    limited, seen, controller = around(kind, monkeypatch)
    trials = controller.get_trials()
    for _ in range(3):
        trials.append(Trial())
        limited.on_trial_add(controller, trials[-1])
    assert [trial.status for trial in trials] == [PAUSED] * 3
    for trial in trials[:2]:
        assert limited.choose_trial_to_run(controller) is trial
        trial.status = RUNNING
    assert seen == [[look] * 3, [RUNNING, look, look]]
    assert limited.choose_trial_to_run(controller) is None
    trials[0].status = PENDING  # it failed, and starts again in its slot
    assert limited.choose_trial_to_run(controller) is None
    assert len(seen) == 2
    trials[0].status = "TERMINATED"
    assert limited.choose_trial_to_run(controller) is trials[2]
    assert trials[2].status == PAUSED


def test_only_new_trials_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that is told of again, nor one that a resumed run brings back as it was."""
    limited, _, controller = around(PopulationBasedTraining, monkeypatch)
    trial, ended = Trial(), Trial("TERMINATED")
    for one in (trial, ended):
        limited.on_trial_add(controller, one)
    assert (trial.status, ended.status) == (PAUSED, "TERMINATED")
    trial.status = PENDING
    limited.on_trial_add(controller, trial)
    assert trial.status == PENDING


def test_a_population_goes_on_as_before_with_a_member_that_failed() -> None:
    """Tune adds it again, at the end: it is compared when it would have been, and chosen before those after it."""
    inner = PopulationBasedTraining(metric="loss", mode="min", hyperparam_mutations={"a": [1]}, time_attr="epoch")
    limited, trials = InSlots(inner, 1), [tune.experiment.Trial("any", stub=True) for _ in range(3)]
    controller = SimpleNamespace(get_trials=lambda: trials, get_live_trials=lambda: trials, search_alg=None)
    controller._resetting_trials, controller._set_trial_status = set(), lambda trial, status: trial.set_status(status)
    for trial in trials:
        limited.on_trial_add(controller, trial)
    inner._trial_state[trials[0]].last_perturbation_time = 4
    for trial in trials:
        inner._trial_state[trial].last_train_time = 4
    for failed in (0, 1):  # places at the time
        trial = trials.pop(failed)
        limited.on_trial_error(controller, trial)
        trial.set_status(PENDING)
        trials.append(trial)
        limited.on_trial_add(controller, trial)
        assert limited.choose_trial_to_run(controller).trial_id == min(trials, key=limited._known.__getitem__).trial_id
    assert inner._trial_state[trials[-1]].last_train_time == 4


def test_decisions_are_those_of_the_other_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    limited, _, controller = around(PopulationBasedTraining, monkeypatch)
    for decision in (TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP):
        monkeypatch.setattr(PopulationBasedTraining, "on_trial_result", lambda *_, decision=decision: decision)
        assert limited.on_trial_result(controller, Trial(RUNNING), {}) == decision
    assert limited.metric == "loss"


@pytest.mark.ray
def test_a_population_keeps_to_its_slot_though_more_is_free(cluster: Cluster, tmp_path: Path) -> None:
    notes = tmp_path / "notes"

    class Slow(tune.Trainable):
        def step(self) -> dict[str, float]:
            began = time.time()
            time.sleep(0.1)
            with open(notes, "a") as file:
                file.write(f"{began} {time.time()}\n")
            return {"loss": 1.0}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, float]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    scheduler = PopulationBasedTraining(
        metric="loss", mode="min", perturbation_interval=2, hyperparam_mutations={"a": [1, 2]}, synch=True
    )
    done = tune.run(
        Slow,
        config={"a": 1},
        num_samples=3,
        scheduler=InSlots(scheduler, 1),
        stop={"training_iteration": 4},
        resources_per_trial=tune.PlacementGroupFactory([{"CPU": 0.25}]),
        storage_path=str(tmp_path / "tune"),
        reuse_actors=True,
        verbose=0,
    ).trials
    assert [trial.last_result["training_iteration"] for trial in done] == [4] * 3
    times = sorted(tuple(map(float, line.split())) for line in notes.read_text().splitlines())
    assert len(times) == 12
    assert all(ended <= began for (_, ended), (began, _) in pairwise(times))


class DiesInHandOver(tune.Trainable):
    """Its process dies when it is first handed from a trial to the next one."""

    def setup(self, config: dict[str, Any]) -> None:
        self.config = config

    def step(self) -> dict[str, Any]:
        return {"loss": self.config["number"], "pid": os.getpid(), "done": self.iteration == 1}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if not (mark := Path(new_config["mark"])).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.setup(new_config)
        return True


@pytest.mark.ray
def test_a_trial_starts_elsewhere_if_the_process_it_takes_over_dies(cluster: Cluster, tmp_path: Path) -> None:
    analysis = tune.run(
        DiesInHandOver,
        config={"number": tune.grid_search([0, 1, 2, 3]), "mark": str(tmp_path / "mark")},
        search_alg=BasicVariantGenerator(max_concurrent=1),
        scheduler=InSlots(FIFOScheduler(), 1),
        callbacks=[Failures(3, tmp_path)],
        max_failures=1,
        raise_on_failed_trial=False,
        reuse_actors=True,
        storage_path=str(tmp_path),
        verbose=0,
    )
    trials = {trial.last_result["loss"]: trial for trial in analysis.trials}
    assert {trial.status for trial in analysis.trials} == {"TERMINATED"}
    first, *others = (trials[number].last_result["pid"] for number in range(4))
    assert first not in others
    assert len(set(others)) == 1
