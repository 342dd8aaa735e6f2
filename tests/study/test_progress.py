"""Lines of progress: at most one in ten seconds, divergence and failures named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_stn.methods import get_method
from tune_stn.study import progress as module
from tune_stn.study.progress import EVERY_S, Progress
from tune_stn.study.run import Run
from tune_stn.tasks import get_task

NO_PEAK = {"hopeless": False, "peak_memory_bytes": None}  # a trainable that does not say


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def run(name: str = "random", **more: Any) -> Run:
    given = {"budget": 40.0, "trials": None, "folder": Path("nowhere")} | more
    return Run(task=get_task("ridge"), config={}, method=get_method(name), seed=2, **given)


def report(**more: Any) -> dict[str, Any]:
    return {"trial_id": "a_1", "val_loss": 0.5, "status": "running", "reason": ""} | more


def test_a_run_from_beginning_to_end(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    progress = Progress(lines.append, total=3)
    progress.skipped(run("stn"))
    with progress.running(run()) as on_report:
        on_report(report(val_loss=0.75), 1.0)
        clock(EVERY_S)
        on_report(report(), 2.0)
        clock(EVERY_S - 0.1)
        on_report(report(val_loss=0.25), 3.0)
        clock(0.1)
        on_report(report(val_loss=0.9), 4.0)
    record = {"trials": 5, "cost_total": 40.25, "failures": {}, "hopeless": False, "peak_memory_bytes": 812 * 2**20}
    progress.finished(run(), record)
    assert lines == [
        "[1/3] stn, seed 2: finished before, skipped",
        "[2/3] random, seed 2: cost 2 of 40, best validation loss 0.5000",
        "[2/3] random, seed 2: cost 4 of 40, best validation loss 0.2500",
        "[2/3] random, seed 2: done: 5 trials, cost 40.2, best validation loss 0.2500, 20 s, 812 MiB a trial",
    ]


@pytest.mark.parametrize(("method", "best"), [("random", "0.2500"), ("hyperband", "0.5000")])
def test_a_run_gone_on_with_keeps_its_best(method: str, best: str, tmp_path: Path) -> None:
    lines = [{"trial_id": "a_1", "epoch": n, "val_loss": loss} for n, loss in enumerate([0.75, float("nan"), 0.25])]
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"trial')
    said: list[str] = []
    progress = Progress(said.append, total=1)
    again = run(method, folder=tmp_path)
    with progress.running(again) as on_report:
        on_report(report(), 2.0)
    progress.finished(again, {"trials": 1, "cost_total": 2.0, "failures": {}} | NO_PEAK)
    assert f"best validation loss {best}" in said[-1]


def test_divergence_is_said_at_once(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    progress = Progress(lines.append, total=1)
    with progress.running(run()) as on_report:
        on_report(report(status="diverged", val_loss=math.inf, reason="the training loss became nan in epoch 3"), 3.0)
    assert lines == ["[1/1] random, seed 2: trial a_1 diverged: the training loss became nan in epoch 3"]


def test_failures_are_counted_and_named_with_the_end_of_a_new_traceback(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    progress = Progress(lines.append, total=1)
    with progress.running(run()):
        progress.failed(run(), "a_2", ["  File mine.py, line 3", "ValueError: no"], "a_2/error.txt", True)
        progress.failed(run(), "a_3", ["  File mine.py, line 3", "ValueError: no"], "a_3/error.txt", False)
        progress.failed(run(), "a_4", ["the trial's process died"], None, False)
    assert lines == [
        "[1/1] random, seed 2: trial a_2 failed and is started again: ValueError: no\n    File mine.py, line 3\n"
        "  the whole traceback: a_2/error.txt",
        "[1/1] random, seed 2: trial a_3 failed: ValueError: no\n  the whole traceback: a_3/error.txt",
        "[1/1] random, seed 2: trial a_4 failed: the trial's process died",
    ]
    progress.finished(
        run(), {"trials": 1, "cost_total": 3.0, "failures": {"a_2": "ValueError: no", "a_3": "died"}} | NO_PEAK
    )
    assert "done: 1 trials, 2 failed, cost 3.0" in lines[-1]
    progress.finished(run(), {"trials": 0, "cost_total": 0.0, "failures": {"a_2": "no"}} | NO_PEAK | {"hopeless": True})
    assert "given up: 0 trials, 1 failed" in lines[-1]
    assert "no validation loss" in lines[-1]


def test_where_trials_are_asked_for_no_budget_is_mentioned(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    progress = Progress(lines.append, total=1)
    endless = run(budget=math.inf, trials=2)
    with progress.running(endless) as on_report:
        clock(EVERY_S)
        on_report(report(), 7.0)
    assert lines == ["[1/1] random, seed 2: cost 7, best validation loss 0.5000"]


def test_the_best_of_a_run_is_not_the_next_ones(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    progress = Progress(lines.append, total=2)
    for loss in (0.1, 0.4):
        with progress.running(run()) as on_report:
            on_report(report(val_loss=loss), 1.0)
        progress.finished(run(), {"trials": 1, "cost_total": 1.0, "failures": {}} | NO_PEAK)
    assert "loss 0.1000" in lines[0]
    assert "loss 0.4000" in lines[1]
