"""Every report once, the running total, and the budget that ends a run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_stn.tuning.recorder import FAILURES_IN_A_ROW, BudgetStopper, Recorder, read_reports


def trial(name: str, status: str = "RUNNING", **more: Any) -> Any:
    return SimpleNamespace(trial_id=name, status=status, last_result={}, **more)


def result(epoch: int, *, cost: float = 1.5, seconds: float = 0.25, **more: Any) -> dict[str, Any]:
    """As `STNTrainable.step` gives it, with some of what Tune adds; `cost` is of this epoch."""
    return {
        "epoch": epoch,
        "step": 8 * epoch,
        "cost": 100.0 + epoch,  # as of a copied checkpoint: includes what another trial spent
        "cost_increment": cost,
        "device_time_s": 50.0,
        "device_time_increment_s": seconds,
        "train_loss": 1.0,
        "val_loss": 2.0,
        "test_loss": 3.0,
        "val_accuracy": 0.5,
        "hp/dropout": 0.1,
        "scale/dropout": 0.5,
        "parent_trial_id": "",
        "segment": "",
        "status": "running",
        "reason": "",
        "time_total_s": 9.0,
        "training_iteration": epoch,
    } | more


def record(recorder: Recorder, name: str, report: dict[str, Any]) -> None:
    """As Tune does it: the callback first, then the trial's last result."""
    one = trial(name)
    recorder.on_trial_result(0, [], one, report)


def saved(recorder: Recorder, name: str, report: dict[str, Any]) -> None:
    one = trial(name)
    one.last_result = report
    recorder.on_checkpoint(0, [], one, None)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reports.jsonl"


def test_lines_hold_reports_with_own_and_running_totals(path: Path) -> None:
    recorder = Recorder(path)
    for epoch in (1, 2, 3):
        record(recorder, "a", result(epoch))
        record(recorder, "b", result(epoch, cost=2.0))
    lines = read_reports(path)
    assert [line["cost_total"] for line in lines] == [1.5, 3.5, 5.0, 7.0, 8.5, 10.5]
    assert [line["cost"] for line in lines] == [1.5, 2.0, 3.0, 4.0, 4.5, 6.0]
    assert [line["device_time_s"] for line in lines] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    walls = [line["wall_time_s"] for line in lines]
    assert walls == sorted(walls)
    assert set(lines[0]) == {
        *("trial_id", "epoch", "step", "cost", "cost_total", "device_time_s", "wall_time_s", "train_loss", "val_loss"),
        *("test_loss", "val_accuracy", "hp/dropout", "scale/dropout", "parent_trial_id", "segment", "status", "reason"),
    }
    final = {line["trial_id"]: line["cost"] for line in lines}
    assert sum(final.values()) == recorder.cost_total == 10.5


def test_a_repetition_is_neither_kept_nor_charged(path: Path) -> None:
    heard: list[float] = []
    recorder = Recorder(path, lambda report, total: heard.append(total))
    for epoch in (1, 2, 3, 2, 3, 4):
        record(recorder, "a", result(epoch))
    assert [line["epoch"] for line in read_reports(path)] == [1, 2, 3, 4]
    assert heard == [1.5, 3.0, 4.5, 6.0]


def test_a_copy_of_another_trial_reports_its_epochs_anew(path: Path) -> None:
    """After an exploit the epochs rewind, but the work is done again and is charged; nothing of the parent's is."""
    recorder = Recorder(path)
    for epoch in (1, 2, 3):
        record(recorder, "a", result(epoch))
    record(recorder, "a", result(2, segment="copy", parent_trial_id="b"))
    record(recorder, "a", result(2, segment="copy", parent_trial_id="b"))
    lines = read_reports(path)
    assert [line["cost"] for line in lines] == [1.5, 3.0, 4.5, 6.0]
    assert recorder.cost_total == 6.0


def test_goes_on_counting_from_the_file(path: Path) -> None:
    before = Recorder(path)
    for epoch in (1, 2):
        record(before, "a", result(epoch))
    lines = path.read_text().splitlines()
    late = [json.dumps(json.loads(line) | {"wall_time_s": 1000.0 + i}) + "\n" for i, line in enumerate(lines)]
    path.write_text("".join(late))
    after = Recorder(path)
    assert after.cost_total == 3.0
    after.on_step_begin(0, [trial("a")])
    for epoch in (2, 3):
        record(after, "a", result(epoch))
    lines = read_reports(path)
    assert [(line["epoch"], line["cost"], line["cost_total"]) for line in lines] == [
        (1, 1.5, 1.5),
        (2, 3, 3),
        (3, 4.5, 4.5),
    ]
    assert lines[-1]["device_time_s"] == 0.75
    assert 1001.0 <= lines[-1]["wall_time_s"] < 1100.0


def test_trials_that_tune_did_not_save_are_dropped_and_not_charged(path: Path) -> None:
    """A killed driver: Tune brings back what it saved last, and will make the other trials again, by another name."""
    before = Recorder(path)
    for epoch in (1, 2):
        record(before, "known", result(epoch))
        record(before, "lost", result(epoch, cost=7.0))
    after = Recorder(path)
    after.on_step_begin(0, [trial("known")])
    assert [(line["trial_id"], line["cost_total"]) for line in read_reports(path)] == [("known", 1.5), ("known", 3.0)]
    assert after.cost_total == 3.0
    after.on_step_begin(1, [])  # a later step drops nothing
    record(after, "lost again", result(1, cost=7.0))
    assert [line["cost_total"] for line in read_reports(path)] == [1.5, 3.0, 10.0]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_nothing_is_dropped_from_a_run_that_starts(path: Path) -> None:
    recorder = Recorder(path)
    record(recorder, "a", result(1))
    recorder.on_step_begin(0, [])
    assert len(read_reports(path)) == 1


def test_a_torn_last_line_is_cut_off(path: Path) -> None:
    recorder = Recorder(path)
    for epoch in (1, 2):
        record(recorder, "a", result(epoch))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        after = Recorder(path)
        assert after.cost_total == 1.5
        record(after, "a", result(2))
        lines = read_reports(path)
        assert [line["epoch"] for line in lines] == [1, 2]
        assert lines[-1]["cost_total"] == 3.0


@pytest.mark.parametrize("damage", [b"\xff\xfe", b'{"epoch": 1}', b"[1]", b"7", b'{"trial_id": "a", "epo'])
def test_a_damaged_earlier_line_is_named(path: Path, damage: bytes) -> None:
    recorder = Recorder(path)
    for epoch in (1, 2, 3):
        record(recorder, "a", result(epoch))
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, lines[2]]) + b"\n")
    with pytest.raises(ValueError, match=r"reports\.jsonl, line 2 is damaged .*delete its folder") as caught:
        Recorder(path)
    assert "\n" not in str(caught.value)


def test_no_file_no_reports(path: Path) -> None:
    assert read_reports(path) == []
    assert not path.exists()


# Budget -------------------------------------------------------------------------------------------------------------


def test_the_budget_ends_the_run_at_the_report_that_reaches_it(path: Path) -> None:
    recorder = Recorder(path)
    stopper = BudgetStopper(recorder, 4.5)
    for epoch in (1, 2):
        record(recorder, "a", result(epoch))
        assert not stopper.stop_all()
    assert stopper("a", result(3)) is False  # the run ends, not one trial
    record(recorder, "a", result(3))
    assert stopper.stop_all()
    assert stopper.spent
    assert not stopper.hopeless


def test_a_trial_cut_off_by_the_budget_saves_first_where_its_schedule_is_read_from_checkpoints(path: Path) -> None:
    recorder = Recorder(path)
    stopper = BudgetStopper(recorder, 3.0, save_last=True)
    assert stopper("a", result(1)) is False
    record(recorder, "a", result(1))
    assert stopper("a", result(2)) is True  # asked before the report is recorded
    record(recorder, "a", result(2))
    assert stopper.spent
    assert not stopper.stop_all()
    saved(recorder, "a", result(1))  # an older one does not do
    assert not stopper.stop_all()
    saved(recorder, "a", result(2))
    assert stopper.stop_all()


@pytest.mark.parametrize("end", ["on_trial_complete", "on_trial_error"])
def test_a_trial_that_has_ended_is_not_waited_for(path: Path, end: str) -> None:
    recorder = Recorder(path)
    stopper = BudgetStopper(recorder, 1.0, save_last=True)
    record(recorder, "a", result(1))
    assert not stopper.stop_all()
    getattr(recorder, end)(0, [], trial("a"))
    assert stopper.stop_all()


def test_a_trial_brought_back_with_the_budget_spent_repeats_up_to_its_last_report_and_saves(path: Path) -> None:
    """The driver was killed between the last report and the checkpoint."""
    before = Recorder(path)
    for epoch in (1, 2, 3):
        record(before, "a", result(epoch))
    record(before, "done", result(1))
    recorder = Recorder(path)
    stopper = BudgetStopper(recorder, 6.0, save_last=True)
    recorder.on_step_begin(0, [trial("a", "PENDING"), trial("done", "TERMINATED")])
    assert recorder.unsaved == {"a"}
    assert stopper.spent
    assert not stopper.stop_all()
    assert stopper("a", result(2)) is False
    record(recorder, "a", result(2))
    assert stopper("a", result(3)) is True
    record(recorder, "a", result(3))
    saved(recorder, "a", result(3))
    assert stopper.stop_all()
    assert len(read_reports(path)) == 4


def test_one_failure_after_the_other_is_hopeless(path: Path, tmp_path: Path) -> None:
    recorder = Recorder(path)
    stopper = BudgetStopper(recorder, 100.0)
    error_file = tmp_path / "error.txt"
    error_file.write_text("Traceback\n  File x\nValueError: no such thing\n\n")
    for number in range(FAILURES_IN_A_ROW - 1):
        recorder.on_trial_error(0, [], trial(f"bad{number}", error_file=str(error_file)))
    assert not stopper.stop_all()
    record(recorder, "good", result(1))  # a report in between: not hopeless
    for number in range(FAILURES_IN_A_ROW):
        assert not stopper.stop_all()
        recorder.on_trial_error(0, [], trial(f"worse{number}"))
    assert stopper.stop_all()
    assert stopper.hopeless
    assert not stopper.spent
    assert recorder.failures["bad0"] == "ValueError: no such thing"
    assert recorder.failures["worse0"] == "the trial's process died"


def test_a_stopper_that_tune_saved_before_a_crash_counts_with_the_recorder_of_the_resumed_run(path: Path) -> None:
    saved_by_tune = pickle.dumps(BudgetStopper(Recorder(path), 2.0))
    recorder = Recorder(path)
    stopper = BudgetStopper(recorder, 2.0)
    restored = pickle.loads(saved_by_tune)  # noqa: S301
    assert restored is stopper
    for epoch in (1, 2):
        assert not restored.stop_all()
        record(recorder, "a", result(epoch))
    assert restored.stop_all()
