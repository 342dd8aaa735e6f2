"""Places of reports: counted on through copies and failures, alike before and after a crash of the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tune_stn.tuning.recording.journal import COPIED, EVENT, FAILED
from tune_stn.tuning.recording.ledger import Ledger
from tune_stn.tuning.recording.result_reader import ResultReader

Make = Callable[..., Any]


def line(ledger: Ledger, iteration: int) -> dict[str, Any]:
    trial, segment, epoch = ledger.place("a", iteration)
    cost = ledger.cost_total + 1
    return {
        **{"trial_id": trial, "segment": segment, "epoch": epoch, "training_iteration": iteration, "hp/lr": 0.1},
        **{"val_loss": 1.0, "cost": cost, "cost_total": cost, "wall_time_s": 2.0 * epoch},
    }


@pytest.mark.parametrize("crash", [False, True])
def test_epochs_never_rewind_and_repetitions_are_known(fake_trial: Make, crash: bool) -> None:
    others = [fake_trial("b", config={"lr": 0.5})]
    lines: list[dict[str, Any]] = []
    ledger = Ledger([], ResultReader())
    ledger.lineage.start(fake_trial("a", config={"lr": 0.1}), others)

    def report(iteration: int) -> tuple[str, int]:
        lines.append(line(ledger, iteration))
        ledger.take(lines[-1])
        return lines[-1]["segment"], lines[-1]["epoch"]

    assert [report(iteration) for iteration in (1, 2, 3)] == [("", 1), ("", 2), ("", 3)]
    assert report(3) == ("", 3)  # failed, and went on from a checkpoint
    copy = fake_trial("a", config={"lr": 0.6}, checkpoint_of="b")
    ledger.lineage.start(copy, others)
    values = {"values": {"lr": 0.6}, "sources": {"lr": "explore"}, "checkpoint": copy.checkpoint.path}
    lines.append({EVENT: COPIED, "trial_id": "a", "segment": "1", "parent_trial_id": "b"} | values)
    ledger.take(lines[-1])
    assert [report(iteration) for iteration in (11, 12)] == [("1", 4), ("1", 5)]
    if crash:
        ledger = Ledger(lines, ResultReader())
        assert ledger.lineage.current("a")[0].name == ""
        ledger.lineage.start(copy, others)
    assert [report(iteration) for iteration in (11, 12, 13)] == [("1", 4), ("1", 5), ("1", 6)]
    assert len(ledger.losses) == 6
    assert ledger.latest["a"]["epoch"] == 6
    assert ledger.copies == {("a", "1")}
    assert ledger.wall_time_s == 12.0


def test_a_first_report_may_be_of_any_iteration() -> None:
    """A trial that began from a checkpoint of the user's."""
    assert Ledger([], ResultReader()).place("a", 11) == ("a", "", 1)


def test_failures_are_counted_again() -> None:
    assert Ledger([{EVENT: FAILED, "trial_id": "a", "reason": "no"}], ResultReader()).failures == {"a": "no"}
