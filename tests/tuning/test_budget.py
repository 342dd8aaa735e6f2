"""The budget that ends a run, and the run that is given up."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_stn.tuning.budget import FAILURES_IN_A_ROW, BudgetStopper
from tune_stn.tuning.recording.journal import read_reports
from tune_stn.tuning.recording.recorder import Recorder

Make = Callable[..., Any]


@pytest.fixture
def record(fake_trial: Make) -> Make:
    """`record(recorder, "a", report)`: as Tune calls the recorder."""
    return lambda recorder, name, report: recorder.on_trial_result(0, [], fake_trial(name), report)


@pytest.fixture
def saved(fake_trial: Make) -> Make:
    """`saved(recorder, "a", report)`: the trial saved a checkpoint with that report."""
    return lambda recorder, name, report: recorder.on_checkpoint(0, [], fake_trial(name, last_result=report), None)


def test_the_budget_ends_the_run_at_the_report_that_reaches_it(tmp_path: Path, record: Make, own_result: Make) -> None:
    recorder = Recorder(tmp_path)
    stopper = BudgetStopper(recorder, 4.5)
    for epoch in (1, 2):
        record(recorder, "a", own_result(epoch))
        assert not stopper.stop_all()
    assert stopper("a", own_result(3)) is False  # the run ends, not one trial
    record(recorder, "a", own_result(3))
    assert stopper.stop_all()
    assert stopper.spent
    assert not stopper.hopeless


def test_what_watches_a_run_may_end_it(tmp_path: Path) -> None:
    def watch() -> None:
        raise RuntimeError("no node is left")

    with pytest.raises(RuntimeError, match="no node is left"):
        BudgetStopper(Recorder(tmp_path), 4.5, watch=watch).stop_all()


def test_a_trial_cut_off_by_the_budget_saves_first_where_its_schedule_is_read_from_checkpoints(
    tmp_path: Path, record: Make, saved: Make, own_result: Make
) -> None:
    recorder = Recorder(tmp_path)
    stopper = BudgetStopper(recorder, 3.0, save_last=True)
    assert stopper("a", own_result(1)) is False
    record(recorder, "a", own_result(1))
    assert stopper("a", own_result(2)) is True  # asked before the report is recorded
    record(recorder, "a", own_result(2))
    assert stopper.spent
    assert not stopper.stop_all()
    saved(recorder, "a", own_result(1))  # an older one does not do
    assert not stopper.stop_all()
    saved(recorder, "a", own_result(2))
    assert stopper.stop_all()


@pytest.mark.parametrize("end", ["on_trial_complete", "on_trial_error"])
def test_a_trial_that_has_ended_is_not_waited_for(
    tmp_path: Path, record: Make, fake_trial: Make, own_result: Make, end: str
) -> None:
    recorder = Recorder(tmp_path)
    stopper = BudgetStopper(recorder, 1.0, save_last=True)
    record(recorder, "a", own_result(1))
    assert not stopper.stop_all()
    getattr(recorder, end)(0, [], fake_trial("a"))
    assert stopper.stop_all()


def test_a_trial_brought_back_with_the_budget_spent_repeats_up_to_its_last_report_and_saves(
    tmp_path: Path, record: Make, saved: Make, fake_trial: Make, own_result: Make
) -> None:
    """The driver was killed between the last report and the checkpoint."""
    before = Recorder(tmp_path)
    for epoch in (1, 2, 3):
        record(before, "a", own_result(epoch))
    record(before, "done", own_result(1))
    recorder = Recorder(tmp_path)
    stopper = BudgetStopper(recorder, 6.0, save_last=True)
    recorder.on_step_begin(0, [fake_trial("a", "PENDING"), fake_trial("done", "TERMINATED")])
    assert recorder.unsaved == {"a"}
    assert stopper.spent
    assert not stopper.stop_all()
    assert stopper("a", own_result(2)) is False
    record(recorder, "a", own_result(2))
    assert stopper("a", own_result(3)) is True
    record(recorder, "a", own_result(3))
    saved(recorder, "a", own_result(3))
    assert stopper.stop_all()
    assert len(read_reports(recorder.path)) == 4


@pytest.mark.parametrize(("checkpoint_epoch", "ends_at_once"), [(None, False), (2, False), (3, True)])
def test_a_trial_brought_back_whose_checkpoint_holds_all_its_reports_makes_no_more(
    tmp_path: Path, record: Make, fake_trial: Make, own_result: Make, checkpoint_epoch: int | None, ends_at_once: bool
) -> None:
    """The driver was killed after the checkpoint, but before the run had ended."""
    before = Recorder(tmp_path)
    for epoch in (1, 2, 3):
        record(before, "a", own_result(epoch))
    recorder = Recorder(tmp_path)
    newest = checkpoint_epoch and SimpleNamespace(metrics=own_result(checkpoint_epoch))
    recorder.on_step_begin(0, [fake_trial("a", "PENDING", latest_checkpoint_result=newest)])
    assert BudgetStopper(recorder, 4.5, save_last=True).stop_all() is ends_at_once


def test_one_failure_after_the_other_is_hopeless(
    tmp_path: Path, record: Make, fake_trial: Make, own_result: Make
) -> None:
    recorder = Recorder(tmp_path)
    stopper = BudgetStopper(recorder, 100.0)
    for number in range(FAILURES_IN_A_ROW - 1):
        recorder.on_trial_error(0, [], fake_trial(f"bad{number}"))
    assert not stopper.stop_all()
    record(recorder, "good", own_result(1))  # a report in between: not hopeless
    for number in range(FAILURES_IN_A_ROW):
        assert not stopper.stop_all()
        recorder.on_trial_error(0, [], fake_trial(f"worse{number}"))
    assert stopper.stop_all()
    assert stopper.hopeless
    assert not stopper.spent


def test_a_stopper_that_tune_saved_before_a_crash_counts_with_the_recorder_of_the_resumed_run(
    tmp_path: Path, record: Make, own_result: Make
) -> None:
    saved_by_tune = pickle.dumps(BudgetStopper(Recorder(tmp_path), 2.0))
    recorder = Recorder(tmp_path)
    stopper = BudgetStopper(recorder, 2.0)
    restored = pickle.loads(saved_by_tune)  # noqa: S301
    assert restored is stopper
    for epoch in (1, 2):
        assert not restored.stop_all()
        record(recorder, "a", own_result(epoch))
    assert restored.stop_all()
