"""Fixed: plain training and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tune_stn.training import Trainer, get_rule
from tune_stn.training.rules import RULES


def test_step_is_that_of_a_plain_network(make_task: Any) -> None:
    """By hand: the task's own model, torch's own optimizer, the penalty on the weights."""
    task = make_task(start={"dropout": 0.0, "input_scale": 0.0, "decay": 0.05})
    trainer = Trainer(task, algorithm="fixed")
    plain = task.model()
    plain.load_state_dict(trainer.model.network.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for step in range(3):
        batch = trainer.splits.train.take(torch.arange(8 * step, 8 * step + 8))
        # Without the model's own unbound dropout; those that read a rate of 0 change nothing.
        plain[3].eval()
        trainer.model.train()
        trainer.model.network.get_submodule("3").eval()
        loss = F.cross_entropy(plain[1:](batch.inputs), batch.targets)
        loss = loss + 0.05 / 2 * sum(p.square().sum() for p in plain.parameters() if p.dim() > 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert trainer.rule.train_step(batch) == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(trainer.model.network.get_parameter(name), parameter, rtol=1e-5, atol=1e-7), name


def test_network_is_plain(make_task: Any) -> None:
    trainer = Trainer(make_task(response="full"), algorithm="fixed")
    assert list(trainer.stepper.optimizers) == ["base"]
    assert not list(trainer.model.response_layers())
    assert {type(m).__name__ for m in trainer.model.network} == {"UnitDropout", "Linear", "ReLU", "Dropout"}  # type: ignore[union-attr]


def test_hyperparameters_stay(make_task: Any) -> None:
    trainer = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.3})
    reports = [trainer.run_epoch() for _ in range(3)]
    assert {report["hp/dropout"] for report in reports} == {float(torch.tensor(0.3))}
    assert {report["scale/dropout"] for report in reports} == {0.0}


def test_registry_names_every_rule_once() -> None:
    assert list(RULES) == ["auto", "stn", "delta-stn", "progress-ratio", "fixed"]
    assert [get_rule(name).name for name in RULES] == list(RULES)
    assert [rule.tunes for rule in RULES.values()] == [True, True, True, True, False]
    assert [rule.centred for rule in RULES.values()] == [False, False, True, False, False]


def test_unknown_algorithm_names_the_accepted_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown algorithm 'sgd'; accepted are auto, stn, delta-stn, progress-ratio, fixed"
    ):
        get_rule("sgd")
