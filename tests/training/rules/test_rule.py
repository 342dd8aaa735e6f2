"""A rule with a state of its own: in checkpoints, after a restart, in a run that takes over another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tune_stn.data.batches import Batch
from tune_stn.training import RULES, Trainer, load_state, save_state
from tune_stn.training.rules import Tools
from tune_stn.training.rules.stn import STN

Differences = Callable[[Trainer, Trainer], list[str]]


class Averaging(STN):
    """STN whose weights are averaged over the steps; the average counts in the next training step."""

    name = "averaging"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.steps = 0
        self.average = torch.zeros(())

    def train_step(self, batch: Batch) -> Tensor:
        loss = super().train_step(batch)
        self.steps += 1
        self.average.lerp_(loss, 1 / self.steps)
        self.stepper.parameters("base")[0].data.add_(1e-3 * self.average)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.average = state["steps"], state["average"]


@pytest.fixture
def make(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    monkeypatch.setitem(RULES, Averaging.name, Averaging)  # type: ignore[call-overload]
    return lambda seed=0, **settings: Trainer(make_task(**settings), algorithm="averaging", seed=seed)


def rule_of(trainer: Trainer) -> Averaging:
    assert isinstance(trainer.rule, Averaging)
    return trainer.rule


def test_each_run_has_a_rule_of_its_own(make: Callable[..., Trainer]) -> None:
    one, other = make(), make()
    one.run_epoch()
    assert (rule_of(one).steps, rule_of(other).steps) == (3, 0)


def test_the_state_is_in_the_checkpoint(make: Callable[..., Trainer], differences: Differences, tmp_path: Path) -> None:
    whole, killed = make(), make()
    for trainer in (whole, killed):
        trainer.run_epoch()
    save_state(killed.state_dict(), tmp_path / "state.pt")
    resumed = make()
    resumed.load_state_dict(load_state(tmp_path / "state.pt"))
    assert not differences(killed, resumed)
    for trainer in (whole, resumed):
        trainer.run_epoch()
    assert not differences(whole, resumed)
    assert whole.state_dict()["rule"]["steps"] == 6


def test_two_runs_from_one_state_share_no_tensor(make: Callable[..., Trainer]) -> None:
    giver, taker = make(), make(seed=1)
    giver.run_epoch()
    taker.run_epoch()
    before = giver.state_dict()["rule"]["average"].clone()
    taker.take_over(giver.state_dict(), taker.state_dict(), cost=1.0, branch="taker", widen=1.2)
    assert torch.equal(rule_of(taker).average, before)
    taker.run_epoch()
    assert rule_of(taker).steps == 6
    assert not torch.equal(rule_of(taker).average, before)
    assert torch.equal(rule_of(giver).average, before)


def test_a_restart_takes_the_state_back(make: Callable[..., Trainer]) -> None:
    trainer = make(restarts=1)
    trainer.run_epoch()
    good = rule_of(trainer).average.clone()
    step, seen = trainer.rule.train_step, []

    def diverge_once(batch: Batch) -> Tensor:
        seen.append((rule_of(trainer).steps, rule_of(trainer).average.clone()))
        loss = step(batch)
        return loss * math.nan if len(seen) == 2 else loss

    trainer.rule.train_step = diverge_once  # type: ignore[method-assign]
    trainer.run_epoch()
    assert trainer.restarts == 1
    assert [steps for steps, _ in seen] == [3, 4, 5, 3, 4, 5]
    assert torch.equal(seen[3][1], good)


def test_a_rule_without_state_has_none(make_task: Any) -> None:
    for algorithm in ("fixed", "stn", "delta-stn"):
        assert Trainer(make_task(), algorithm=algorithm).state_dict()["rule"] == {}


def test_a_rule_that_tunes_nothing_takes_no_hyper_step(make_task: Any) -> None:
    trainer = Trainer(make_task(), algorithm="fixed")
    with pytest.raises(NotImplementedError, match="'fixed' tunes no hyperparameters"):
        trainer.rule.hyper_step(trainer.splits.valid.take(torch.arange(8)))
