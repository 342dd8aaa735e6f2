"""Results become lines of one form, whoever's trainable reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tune_stn.tuning.recording.ledger import Ledger
from tune_stn.tuning.recording.lines import Lines
from tune_stn.tuning.recording.result_reader import ResultReader

Make = Callable[..., Any]


@pytest.fixture
def lines() -> Lines:
    return Lines(ResultReader())


def test_a_trainable_that_describes_itself_is_taken_at_its_word(lines: Lines) -> None:
    result = {"segment": "copy", "parent_trial_id": "b", "epoch": 4, "training_iteration": 9}
    result |= {"status": "running", "reason": ""}
    assert lines.place("a", result, Ledger([], ResultReader())) == ("a", "copy", 4)


def test_a_line_has_the_same_columns_for_both_kinds_of_trainable(
    lines: Lines, fake_trial: Make, own_result: Make
) -> None:
    trial, ledger = fake_trial("a", config={"hp": {"dropout": 0.3}}), Ledger([], ResultReader())
    ledger.lineage.start(trial, [trial])
    theirs = {"val_loss": 2.0, "training_iteration": 1, "config": trial.config}
    own, foreign = (lines.report(trial, result, ledger, wall_time_s=7.0) for result in (own_result(1), theirs))
    assert [(line["epoch"], line["segment"], line["parent_trial_id"], line["status"]) for line in (own, foreign)] == [
        (1, "", "", "running"),
        (1, "", "", "running"),
    ]
    assert (own["cost"], own["cost_total"], own["hp/dropout"], own["wall_time_s"]) == (1.5, 1.5, 0.1, 7.0)
    assert (foreign["cost"], foreign["cost_total"], foreign["hp/dropout"]) == (1.0, 1.0, 0.3)
    assert "cost_increment" not in own
