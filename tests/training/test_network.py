"""Which size of response a run gets, whether it is said why, and what the response sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tune_stn.nn.penalties import ActivationNorm, WeightDecay
from tune_stn.space import Tunable
from tune_stn.training import Trainer, get_rule

STN, DELTA = get_rule("stn").why, get_rule("delta-stn").why
DECAY = "under a strong weight decay, weights and gates shrink each other to nothing"
OWN = (WeightDecay("decay"),)
ELSE = (ActivationNorm("decay", "2"),)


@pytest.mark.parametrize(
    ("algorithm", "penalties", "response", "expected"),
    [
        ("stn", ELSE, "auto", f"gate (automatic: {STN})"),
        ("stn", OWN, "auto", f"full (automatic: {DECAY})"),
        ("stn", (*ELSE, *OWN), "auto", f"full (automatic: {DECAY})"),
        ("delta-stn", ELSE, "auto", f"rank 8 (automatic: {DELTA})"),
        ("delta-stn", OWN, "auto", f"rank 8 (automatic: {DELTA})"),
        ("stn", OWN, "gate", "gate"),
        ("delta-stn", OWN, 2, "rank 2"),
        ("stn", ELSE, {"1": "full", "*": "gate"}, "full"),
    ],
)
def test_size_and_reason(make_task: Any, algorithm: str, penalties: Any, response: Any, expected: str) -> None:
    """A size that was asked for needs no reason."""
    trainer = Trainer(make_task(penalties=penalties, response=response), algorithm=algorithm)
    assert trainer.model.conversion.responding["1"] == expected


@pytest.mark.parametrize("response", ["auto", "full"])
def test_a_plain_run_has_none(make_task: Any, response: str) -> None:
    trainer = Trainer(make_task(response=response), algorithm="fixed")
    assert trainer.model.conversion.responding == {}


def test_the_papers_response_input_is_a_setting(make_task: Any) -> None:
    """Of three hyperparameters: to the last bit the raw coordinates, and -3 / sqrt(3) by default."""
    papers = make_task(response="gate", response_origin=None, shrink_gates=False)
    trainer = Trainer(papers, algorithm="stn")
    response_input = trainer.model.mean_sample().response_input
    assert response_input is not None
    assert isinstance(trainer.model.hyper, Tunable)
    assert torch.equal(response_input, trainer.model.hyper.raw[None])
    trainer.run_epoch()
    assert trainer.diverged is None
    response_input = Trainer(make_task(response="gate"), algorithm="stn").model.mean_sample().response_input
    assert response_input is not None
    assert response_input[0].tolist() == pytest.approx([-3 / 3**0.5] * 3)
