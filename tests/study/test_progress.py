"""Lines of progress, from journals that the test writes: what is said, when, and what is not said twice."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_stn.methods import get_method
from tune_stn.study import progress as module
from tune_stn.study.progress import EVERY_S, Progress
from tune_stn.study.run import Run
from tune_stn.tasks import get_task
from tune_stn.tuning.recording.journal import COPIED, EVENT, FAILED, FINISHED, REPORTS, RESTARTED, append, replace

RECORD = {"trials": 1, "cost_total": 2.0, "failures": {}, "hopeless": False, "peak_memory_bytes": None}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def make_run(place: Path, method: str = "random", seed: int = 2, **more: Any) -> Run:
    folder = place / "state" / f"{method}-seed{seed}"
    given = {"budget": 40.0, "trials": None} | more
    folder.mkdir(parents=True, exist_ok=True)
    return Run(task=get_task("ridge"), config={}, method=get_method(method), seed=seed, folder=folder, **given)


def report(run: Run, epoch: int, **more: Any) -> None:
    """Append a report to the journal of a run; its cost is the epoch's number unless said otherwise."""
    line = {"trial_id": "a_1", "segment": "", "epoch": epoch, "val_loss": 0.5, "cost_total": float(epoch)}
    append(run.folder / REPORTS, line | {"status": "running", "reason": ""} | more)


def event(run: Run, kind: str, trial: str, **more: Any) -> None:
    append(run.folder / REPORTS, {EVENT: kind, "trial_id": trial, **more})


def follow(run: Run, said: list[str], total: int = 1) -> Progress:
    progress = Progress(said.append, total=total)
    progress.started(run)
    said.clear()
    return progress


def test_a_run_from_beginning_to_end(clock: Callable[[float], None], run: Run, tmp_path: Path, said: list[str]) -> None:
    progress = Progress(said.append, total=3)
    progress.skipped(make_run(tmp_path, "stn"))
    progress.started(run)
    progress.look()
    report(run, 1, val_loss=0.75)
    progress.look()
    clock(EVERY_S)
    report(run, 2)
    progress.look()
    clock(EVERY_S - 0.1)
    report(run, 3, val_loss=0.25)
    progress.look()
    clock(0.1)
    report(run, 4, val_loss=0.9)
    progress.look()
    report(run, 5, val_loss=0.125)  # between the last look and the end
    progress.finished(run, RECORD | {"trials": 5, "cost_total": 40.25, "peak_memory_bytes": 812 * 2**20})
    assert said == [
        "[1/3] stn, seed 2: finished before, skipped",
        "[2/3] random, seed 2: started",
        "[2/3] random, seed 2: cost 2 of 40, best validation loss 0.5000",
        "[2/3] random, seed 2: cost 4 of 40, best validation loss 0.2500",
        "[2/3] random, seed 2: done: 5 trials, cost 40.2, best validation loss 0.1250, 20 s, 812 MiB a trial",
    ]
    assert progress.going == {}


def test_what_was_done_before_or_is_taken_up_again(tmp_path: Path, said: list[str]) -> None:
    first, second = (make_run(tmp_path, seed=seed) for seed in (0, 1))
    failures = {"a_1": "died", "a_2": "died"}
    record = {"trials": 3, "cost_total": 2.0, "failures": failures, "hopeless": False}
    (first.folder / "done.json").write_text(json.dumps(record))
    progress = Progress(said.append, total=2)
    progress.skipped(first)
    progress.started(second, "it had no result")
    assert said == [
        "[1/2] random, seed 0: finished before, skipped; 2 of its trials failed, which --retry-failed runs again",
        "[2/2] random, seed 1: taken up again, for it had no result",
    ]


def test_lines_come_as_seldom_as_many_runs_go_on(
    clock: Callable[[float], None], tmp_path: Path, said: list[str]
) -> None:
    """Two runs: each is said every twenty seconds, so there is a line every ten; the best of one is not the other's."""
    progress = Progress(said.append, total=2)
    runs = [make_run(tmp_path, seed=seed) for seed in (0, 1)]
    for loss, one in zip((0.1, 0.4), runs, strict=True):
        progress.started(one)
        report(one, 3, val_loss=loss)
    said.clear()
    clock(2 * EVERY_S - 0.1)
    progress.look()
    assert said == []
    clock(0.1)
    progress.look()
    progress.look()
    assert said == [
        "[1/2] random, seed 0: cost 3 of 40, best validation loss 0.1000",
        "[2/2] random, seed 1: cost 3 of 40, best validation loss 0.4000",
    ]
    progress.finished(runs[0], RECORD)
    clock(EVERY_S)
    said.clear()
    progress.look()  # now it is alone
    assert [line[:5] for line in said] == ["[2/2]"]


@pytest.mark.parametrize(("method", "best"), [("random", "0.2500"), ("hyperband", "0.5000")])
def test_a_run_gone_on_with_keeps_its_best(method: str, best: str, tmp_path: Path, said: list[str]) -> None:
    """A method that cannot be gone on with begins anew: its folder is removed while the study looks on."""
    run = make_run(tmp_path, method)
    for epoch, loss in enumerate([0.75, math.nan, 0.25], start=1):
        report(run, epoch, val_loss=loss, status="diverged" if math.isnan(loss) else "running", reason="nan")
    with open(run.folder / REPORTS, "a") as file:
        file.write('{"trial')
    progress = follow(run, said)
    progress.look()
    if not run.method.restores:
        shutil.rmtree(run.folder)
        run.folder.mkdir()
        report(run, 1, trial_id="b_1")
    progress.look()
    assert said == []  # the divergence was said by the earlier execution
    progress.finished(run, RECORD)
    assert f"best validation loss {best}" in said[-1]


@pytest.mark.parametrize(("method", "best"), [("random", "0.2500"), ("hyperband", "0.5000")])
def test_a_run_whose_process_died(method: str, best: str, tmp_path: Path, said: list[str]) -> None:
    run = make_run(tmp_path, method)
    progress = follow(run, said)
    report(run, 1, val_loss=0.25)
    progress.died(run)
    report(run, 1, val_loss=0.5, trial_id="b_1")
    progress.finished(run, RECORD)
    what = "the run goes on from there" if run.method.restores else "the run begins anew"
    assert said[0] == f"[1/1] {method}, seed 2: its process died; {what} in another one"
    assert f"best validation loss {best}" in said[1]


def test_divergence_and_a_restart_are_said_at_once(run: Run, said: list[str]) -> None:
    progress = follow(run, said)
    report(run, 2, reason="the training loss became nan in epoch 3; the learning rate is halved")
    report(run, 3, status="diverged", val_loss=math.inf, reason="the training loss became nan in epoch 4")
    report(run, 1, trial_id="a_2")
    progress.look()
    progress.look()
    assert said == [
        "[1/1] random, seed 2: trial a_1 was restarted: the training loss became nan in epoch 3; "
        "the learning rate is halved",
        "[1/1] random, seed 2: trial a_1 diverged: the training loss became nan in epoch 4",
    ]


def test_failures_are_named_with_the_end_of_a_new_traceback(run: Run, said: list[str]) -> None:
    progress = follow(run, said)
    failure = {"reason": "ValueError: no", "lines": ["  File mine.py, line 3", "ValueError: no"], "epoch": 0}
    died = {"reason": "the trial's process died", "lines": ["the trial's process died"], "epoch": 2, "file": None}
    event(run, RESTARTED, "a_2", **failure, file="errors/a_2.txt")
    event(run, FAILED, "a_2", **failure, file="errors/a_2.txt")
    event(run, RESTARTED, "a_4", **died)
    event(run, RESTARTED, "a_4", **died)  # at the same place once more: a line of the journal like the one before
    event(run, COPIED, "a_5", segment="x", epoch=1)
    event(run, FINISHED, "a_5")
    progress.look()
    path = run.folder / "errors" / "a_2.txt"
    assert said == [
        "[1/1] random, seed 2: trial a_2 failed and is started again: ValueError: no\n    File mine.py, line 3\n"
        f"  the whole traceback: {path}",
        f"[1/1] random, seed 2: trial a_2 failed: ValueError: no\n  the whole traceback: {path}",
        *["[1/1] random, seed 2: trial a_4 failed and is started again: the trial's process died"] * 2,
    ]
    progress.finished(run, RECORD | {"trials": 0, "failures": {"a_2": "ValueError: no"}, "hopeless": True})
    assert said[-1].startswith("[1/1] random, seed 2: given up: 0 trials, 1 failed, cost 2.0, no validation loss, ")


def test_a_journal_that_is_written_anew_is_not_told_again(run: Run, said: list[str]) -> None:
    """As a run does that goes on: without the lines of trials that are not known any more, and with other totals."""
    progress = follow(run, said)
    report(run, 1, trial_id="a_1")
    report(run, 1, trial_id="a_2", status="diverged", reason="nan", cost_total=2.0)
    event(run, RESTARTED, "a_1", reason="died", lines=["died"], epoch=1, file=None)
    progress.look()
    assert len(said) == 2
    lines = [json.loads(line) for line in (run.folder / REPORTS).read_text().splitlines()]
    replace(run.folder / REPORTS, [lines[1] | {"cost_total": 1.0}, lines[2]])
    report(run, 2, trial_id="a_1", status="diverged", reason="nan again")
    progress.look()
    assert said[2:] == ["[1/1] random, seed 2: trial a_1 diverged: nan again"]


def test_a_line_is_read_when_it_is_whole(clock: Callable[[float], None], run: Run, said: list[str]) -> None:
    progress = follow(run, said)
    report(run, 1, status="diverged", reason="nan", val_loss=math.inf)
    whole = (run.folder / REPORTS).read_bytes()
    for length in (0, 1, len(whole) - 1):
        (run.folder / REPORTS).write_bytes(whole[:length])
        progress.look()
    assert said == []
    (run.folder / REPORTS).write_bytes(whole + whole[:20])
    progress.look()
    assert said == ["[1/1] random, seed 2: trial a_1 diverged: nan"]


def test_where_trials_are_asked_for_no_budget_is_mentioned(
    clock: Callable[[float], None], tmp_path: Path, said: list[str]
) -> None:
    run = make_run(tmp_path, budget=math.inf, trials=2)
    progress = follow(run, said)
    clock(EVERY_S)
    progress.look()
    assert said == []  # nothing was reported
    report(run, 7)
    progress.look()
    assert said == ["[1/1] random, seed 2: cost 7, best validation loss 0.5000"]


def test_a_run_without_result(run: Run, said: list[str]) -> None:
    progress = follow(run, said)
    progress.without_result(run, "the run of auto at seed 2 is not finished")
    assert said == ["[1/1] random, seed 2: has no result: the run of auto at seed 2 is not finished"]
    assert progress.going == {}
