"""Every report once, the running total, and what an earlier process had recorded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_stn.tuning.recording.journal import EVENT, FAILED, REPORTS, RESTARTED, read_lines, read_reports
from tune_stn.tuning.recording.recorder import Recorder

Make = Callable[..., Any]


@pytest.fixture
def record(fake_trial: Make, own_result: Make) -> Make:
    """`record(recorder, "a", epoch)`: as Tune calls the recorder."""

    def call(recorder: Recorder, name: str, epoch: int, **more: Any) -> None:
        recorder.on_trial_result(0, [], fake_trial(name), own_result(epoch, **more))

    return call


def test_lines_hold_reports_with_own_and_running_totals(tmp_path: Path, record: Make) -> None:
    recorder = Recorder(tmp_path / "new" / "folder")
    for epoch in (1, 2, 3):
        record(recorder, "a", epoch)
        record(recorder, "b", epoch, cost=2.0)
    lines = read_reports(recorder.path)
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


def test_a_repetition_is_neither_kept_nor_charged_nor_told(tmp_path: Path, record: Make) -> None:
    heard: list[float] = []
    recorder = Recorder(tmp_path, on_report=lambda report, total: heard.append(total))
    for epoch in (1, 2, 3, 2, 3, 4):
        record(recorder, "a", epoch, val_loss=float("nan") if epoch == 3 else 1.0)
    assert [line["epoch"] for line in read_reports(recorder.path)] == [1, 2, 3, 4]
    assert heard == [1.5, 3.0, 4.5, 6.0]


def test_a_copy_of_another_trial_reports_its_epochs_anew(tmp_path: Path, record: Make) -> None:
    """After an exploit the epochs rewind, but the work is done again and is charged; nothing of the parent's is."""
    recorder = Recorder(tmp_path)
    for epoch in (1, 2, 3):
        record(recorder, "a", epoch)
    record(recorder, "a", 2, segment="copy", parent_trial_id="b")
    record(recorder, "a", 2, segment="copy", parent_trial_id="b")
    assert [line["cost"] for line in read_reports(recorder.path)] == [1.5, 3.0, 4.5, 6.0]
    assert recorder.cost_total == 6.0


def test_goes_on_counting_from_the_file(tmp_path: Path, record: Make, fake_trial: Make) -> None:
    before = Recorder(tmp_path)
    for epoch in (1, 2):
        record(before, "a", epoch)
    lines = before.path.read_text().splitlines()
    late = [json.dumps(json.loads(line) | {"wall_time_s": 1000.0 + i}) + "\n" for i, line in enumerate(lines)]
    before.path.write_text("".join(late))
    after = Recorder(tmp_path)
    assert after.cost_total == 3.0
    after.on_step_begin(0, [fake_trial("a")])
    for epoch in (2, 3):
        record(after, "a", epoch)
    lines = read_reports(after.path)
    assert [(line["epoch"], line["cost"], line["cost_total"]) for line in lines] == [
        (1, 1.5, 1.5),
        (2, 3, 3),
        (3, 4.5, 4.5),
    ]
    assert lines[-1]["device_time_s"] == 0.75
    assert 1001.0 <= lines[-1]["wall_time_s"] < 1100.0


def test_trials_that_tune_did_not_save_are_dropped_and_not_charged(
    tmp_path: Path, record: Make, fake_trial: Make
) -> None:
    """A killed driver: Tune brings back what it saved last, and will make the other trials again, by another name."""
    before = Recorder(tmp_path)
    for epoch in (1, 2):
        record(before, "known", epoch)
        record(before, "lost", epoch, cost=7.0)
    after = Recorder(tmp_path)
    after.on_step_begin(0, [fake_trial("known")])
    assert [(line["trial_id"], line["cost_total"]) for line in read_reports(after.path)] == [
        ("known", 1.5),
        ("known", 3.0),
    ]
    assert after.cost_total == 3.0
    after.on_step_begin(1, [])  # a later step drops nothing
    record(after, "lost again", 1, cost=7.0)
    assert [line["cost_total"] for line in read_reports(after.path)] == [1.5, 3.0, 10.0]
    assert [file.name for file in tmp_path.iterdir()] == [REPORTS]


def test_what_was_spent_before_the_run_is_where_its_totals_begin(
    tmp_path: Path, record: Make, fake_trial: Make
) -> None:
    """Through a crash of the driver, and pickled, as well; a trial's own cost begins at 0 all the same."""
    before = Recorder(tmp_path, cost_before=100.0, time_before=50.0)
    assert before.cost_total == 100.0
    for name in ("known", "lost"):
        record(before, name, 1)
    (first, _) = read_reports(before.path)
    assert (first["cost"], first["cost_total"]) == (1.5, 101.5)
    assert 50.0 <= first["wall_time_s"] < 60.0
    after = pickle.loads(pickle.dumps(before))  # noqa: S301
    assert after.cost_total == 103.0
    after.on_step_begin(0, [fake_trial("known")])
    assert after.cost_total == 101.5
    record(after, "known", 2)
    assert [line["cost_total"] for line in read_reports(after.path)] == [101.5, 103.0]


def test_nothing_is_dropped_from_a_run_that_starts(tmp_path: Path, record: Make) -> None:
    recorder = Recorder(tmp_path)
    record(recorder, "a", 1)
    recorder.on_step_begin(0, [])
    assert len(read_reports(recorder.path)) == 1


def test_a_line_torn_by_a_crash_is_written_again(tmp_path: Path, record: Make) -> None:
    recorder = Recorder(tmp_path)
    for epoch in (1, 2):
        record(recorder, "a", epoch)
    recorder.path.write_bytes(recorder.path.read_bytes()[:-1])
    after = Recorder(tmp_path)
    assert after.cost_total == 1.5
    record(after, "a", 2)
    assert [(line["epoch"], line["cost_total"]) for line in read_reports(after.path)] == [(1, 1.5), (2, 3.0)]


def test_failures_are_remembered_by_the_next_process(tmp_path: Path, record: Make, fake_trial: Make) -> None:
    error_file = tmp_path / "error.txt"
    error_file.write_text("Traceback\n  File x\nValueError: no such thing\n\n")
    before = Recorder(tmp_path / "run")
    record(before, "one", 1)
    for name, file in (("one", str(error_file)), ("never reported", None), ("restarted", None), ("lost", None)):
        before.on_trial_error(0, [], fake_trial(name, error_file=file))
    after = Recorder(tmp_path / "run")
    assert after.failures == before.failures
    assert set(after.failures) == {"one", "never reported", "restarted", "lost"}
    assert after.failures_in_a_row == 0
    failed = [fake_trial(name, "ERROR") for name in ("one", "never reported")]
    after.on_step_begin(0, [*failed, fake_trial("restarted", "PENDING")])  # of "lost" Tune knows nothing
    expected = {"one": "ValueError: no such thing", "never reported": "the trial's process died"}
    assert after.failures == Recorder(tmp_path / "run").failures == expected


@pytest.mark.parametrize(("reports", "where"), [(0, "before its first report"), (2, "in epoch 3")])
def test_a_restart_is_an_event_with_all_that_is_to_be_said_of_it(
    tmp_path: Path, record: Make, fake_trial: Make, reports: int, where: str
) -> None:
    """Also in the next process; an end that is the same again is said to be."""
    error_file = tmp_path / "error.txt"
    error_file.write_text('Failure # 1 (occurred at noon)\n  File "mine.py", line 3, in loss\nKeyError: 1\n')
    trial = fake_trial("a", error_file=str(error_file))
    before = Recorder(tmp_path / "run")
    for epoch in range(reports):
        record(before, "a", epoch + 1)
    before.on_trial_recover(0, [], trial)
    assert before.failures_in_a_row == 0
    after = Recorder(tmp_path / "run")
    after.on_step_begin(0, [trial])
    after.on_trial_error(0, [], fake_trial("b"))
    after.on_trial_error(0, [], trial)
    restart, other, end = [line for line in read_lines(after.path) if EVENT in line]
    common = {"trial_id": "a", "lines": ['  File "mine.py", line 3, in loss', "KeyError: 1"]}
    common |= {"file": "errors/a.txt", "epoch": reports}
    assert restart == {EVENT: RESTARTED, "reason": "KeyError: 1", **common}
    assert (other["reason"], other["file"]) == ("the trial's process died", None)
    assert end == {EVENT: FAILED, "reason": f"KeyError: 1 (2 times {where}: it is not started again)", **common}
    assert (after.directory / end["file"]).read_text() == error_file.read_text()


def test_a_pickled_recorder_goes_on_with_the_journal(tmp_path: Path, record: Make, monkeypatch: Any) -> None:
    """As in `Tuner.restore`, which brings back the callbacks that it saved when the run began."""
    monkeypatch.chdir(tmp_path)
    recorder = Recorder("run", metric="val_accuracy", mode="max", hps=["dropout"], columns={"cost": "flops"}, seed=3)
    saved = pickle.dumps(recorder)
    record(recorder, "a", 1)
    monkeypatch.chdir("/")
    again = pickle.loads(saved)  # noqa: S301
    assert again.cost_total == 1.5
    assert again.reader == recorder.reader
    assert {name: getattr(again, name) for name in ("path", "seed", "method", "write_every_s")} == {
        **{"path": tmp_path / "run" / REPORTS, "seed": 3, "method": "tune", "write_every_s": 60.0},
    }


def test_another_runs_record_is_not_overwritten_unless_asked(
    tmp_path: Path, record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    first = Recorder(tmp_path)
    record(first, "a", 1)
    with pytest.raises(ValueError, match=r"holds the record of another run: take another directory, or overwrite=True"):
        Recorder(tmp_path).on_step_begin(0, [])
    first.setup()  # the same object in another `tune.run`
    with pytest.raises(ValueError, match="holds the record of another run"):
        first.on_step_begin(0, [])
    assert len(read_reports(first.path)) == 1
    after = Recorder(tmp_path, overwrite=True)
    after.on_step_begin(0, [])
    assert (after.cost_total, read_reports(after.path)) == (0.0, [])
    assert caplog.messages == [
        f"{tmp_path}: Ray Tune has no saved state to go on with, so the run begins anew; reports dropped: 1"
    ]


# The clock ----------------------------------------------------------------------------------------------------


def test_wall_clock_counts_from_the_first_trial_and_goes_on_after_a_time_off(
    tmp_path: Path, record: Make, fake_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start-up is apart; while no process runs, no time counts; work of no slot is none of its time in use."""
    now = [1000.0]
    monkeypatch.setattr("tune_stn.tuning.recording.recorder.time.monotonic", lambda: now[0])
    before = Recorder(tmp_path, cost_before=7.0, time_before=50.0)
    assert before.cost_total == 7.0
    now[0] += 8.0
    before.on_step_begin(0, [])
    for name, seconds in (("a", 0.0), ("b", 3.0)):
        now[0] += seconds
        before.on_trial_start(0, [], fake_trial(name))
    now[0] += 1.0
    record(before, "a", 1, time_this_iter_s=2.5)
    record(before, "b", 1, time_this_iter_s=0.5)
    record(before, "b", 1, time_this_iter_s=0.5)  # a repetition
    assert [line["wall_time_s"] for line in read_reports(before.path)] == [54.0, 54.0]
    expected = {"wall_time_s": 4.0, "startup_s": 8.0, "device_time_s": 0.5, "busy_s": 3.0}
    assert before.seconds() == expected
    now[0] += 1e6
    after = Recorder(tmp_path, cost_before=7.0, time_before=50.0)
    assert after.seconds() == expected
    now[0] += 4.0
    trials = [fake_trial("a"), fake_trial("b")]
    after.on_step_begin(0, trials)
    after.on_trial_start(0, trials, trials[0])
    now[0] += 2.0
    record(after, "a", 2, time_this_iter_s=1.5)
    assert read_reports(after.path)[-1]["wall_time_s"] == 56.0
    assert after.seconds() == {"wall_time_s": 6.0, "startup_s": 12.0, "device_time_s": 0.75, "busy_s": 4.5}


def test_the_next_run_of_a_recorder_begins_its_clock_anew(
    tmp_path: Path, record: Make, fake_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("tune_stn.tuning.recording.recorder.time.monotonic", lambda: now[0])
    recorder = Recorder(tmp_path)
    for name in ("a", "b"):
        recorder.setup()
        now[0] += 100.0
        recorder.on_trial_start(0, [], fake_trial(name))
        now[0] += 1.0
        record(recorder, name, 1)
    assert [line["wall_time_s"] for line in read_reports(recorder.path)] == [1.0, 2.0]
