"""The table of a study that runs: what it says, and that it fits the terminal."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tune_stn.methods import get_method
from tune_stn.study import live, progress
from tune_stn.study.live import LiveTable, clock, share_done
from tune_stn.study.progress import Going, Progress
from tune_stn.study.run import Run
from tune_stn.tasks import get_task

TASK = get_task("ridge", epochs=10)
Advance = Callable[[float], None]


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Advance:
    """Time that passes when the test says so."""
    now = [1000.0]
    for module in (live, progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def make_run(folder: Path, method: str = "random", seed: int = 0, **more: Any) -> Run:
    folder.mkdir(exist_ok=True)
    given = {"budget": 40.0, "trials": None, "folder": folder} | more
    return Run(task=TASK, config={}, method=get_method(method), seed=seed, **given)


def write(run: Run, cost_total: float, wall_time_s: float, val_loss: float = 0.5, **more: Any) -> None:
    line = {"trial_id": "a", "segment": "", "epoch": 1, "cost_total": cost_total, "wall_time_s": wall_time_s}
    line |= {"val_loss": val_loss, "status": "running", "reason": "", "hp/dropout": 0.0625, "hp/decay": 1e-05} | more
    with open(run.folder / "reports.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def drawn(table: LiveTable, of: Progress) -> list[str]:
    """The lines of the table as it is now."""
    with table.console.capture() as capture:
        table.console.print(table.table(of))
    return capture.get().splitlines()


def test_a_row_says_how_a_run_gets_on(tmp_path: Path, advance: Advance) -> None:
    said: list[str] = []
    of, table = Progress(said.append, total=4), LiveTable(terminal(140))
    runs = [make_run(tmp_path / name, name, seed) for seed, name in enumerate(("stn", "random"))]
    for run in runs:
        of.started(run)
    advance(75.0)
    write(runs[0], 4.0, 2.0)
    of.look()
    head, headings, stn, waiting = drawn(table, of)
    assert head == "0 of 4 runs done, 2 going (1 starting), 2 waiting, budget 40 each, 1:15"
    assert " ".join(headings.split()) == "method seed trials cost best val loss left hyperparameters now"
    assert stn.split()[:3] == ["stn", "0", "1"]
    assert stn.split()[-5:] == ["4", "0.5000", "11:15", "dropout=0.062", "decay=1e-5"]  # 75 s for a tenth of it
    assert waiting.replace("━", " ").split() == ["random", "1", "0", "0", "starts"]
    advance(10.0)
    write(runs[0], 10.0, 5.0, trial_id="b", val_loss=0.25)  # 6 of 40 in 3 s, and 30 are left
    of.look()
    assert drawn(table, of)[2].split()[-5:-2] == ["10", "0.2500", "0:15"]
    advance(4.0)
    assert drawn(table, of)[2].split()[-3] == "0:11"
    advance(60.0)
    assert drawn(table, of)[2].split()[-3] == "0:00"
    of.finished(
        runs[0], {"trials": 2, "cost_total": 40.0, "failures": {}, "hopeless": False, "peak_memory_bytes": None}
    )
    assert drawn(table, of)[0].startswith("1 of 4 runs done, 1 going (1 starting), 2 waiting")
    assert len(drawn(table, of)) == 3


def test_what_was_done_before_a_resume_says_nothing_of_how_fast_it_is_now(tmp_path: Path, advance: Advance) -> None:
    of, table = Progress(lambda line: None, total=1), LiveTable(terminal())
    run = make_run(tmp_path / "stn", "stn")
    write(run, 20.0, 400.0)
    of.started(run)
    assert drawn(table, of)[0].startswith("0 of 1 runs done, 1 going (1 starting)")
    assert "starts" in drawn(table, of)[2]
    advance(3.0)
    write(run, 30.0, 402.0, epoch=2)
    of.look()
    assert " 30 0.5000 0:02 " in drawn(table, of)[2]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (60, 12), (40, 6)])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 60])
def test_it_fits_the_terminal_and_shows_the_runs_nearest_their_end(
    tmp_path: Path, advance: Advance, width: int, height: int, number: int
) -> None:
    of, table = Progress(lambda line: None, total=number), LiveTable(terminal(width, height))
    runs = [make_run(tmp_path / f"{seed}", "stn-population", seed) for seed in range(number)]
    values = {f"hp/a_hyperparameter_{name}": 0.123456 for name in range(8)}
    for run in runs:
        of.started(run)
        write(run, 1.0, 1.0, **values)
    of.look()
    drawn(table, of)
    for run in runs:
        write(run, 2.0 + (7 * run.seed) % 31, 2.0, epoch=2, **values)
    of.look()
    lines = drawn(table, of)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert all(len(line) <= width - live.MARGIN for line in lines[1:])
    shown = [int(line.split()[1]) for line in lines if line.startswith("stn-population ")]
    assert shown == sorted(shown)
    left = number - len(shown)
    assert (lines[-1] == f"and {left} more") == (left > 0)
    assert not number or len(shown) == min(number, height - 4)
    costs = {run.seed: (7 * run.seed) % 31 for run in runs}
    assert min((costs[seed] for seed in shown), default=0) >= max(
        (cost for seed, cost in costs.items() if seed not in shown), default=-1
    )


def test_where_there_is_room_all_hyperparameters_are_there(tmp_path: Path) -> None:
    values = {f"hp/number_{name}": 0.5 for name in range(8)}
    for number, complete in ((2, True), (30, False)):
        of, table = Progress(lambda line: None, total=number), LiveTable(terminal())
        for seed in range(number):
            of.started(run := make_run(tmp_path / f"{number}-{seed}", "stn", seed))
            write(run, 1.0, 1.0, **values)
        of.look()
        lines = drawn(table, of)
        assert ("number_7=0.5" in "".join(lines)) == complete


def test_the_share_that_is_done_is_of_the_budget_or_of_the_epochs_asked_for(tmp_path: Path) -> None:
    going = Going(make_run(tmp_path / "a"), "", began=0.0, spoke=0.0)
    assert share_done(going) == 0.0
    going.cost_total = 30.0
    assert share_done(going) == 0.75
    going.limit = 60.0  # of one that follows another run, which has spent 20
    assert share_done(going) == 0.25
    going.cost_total = 61.0
    assert share_done(going) == 1.0
    endless = Going(make_run(tmp_path / "b", budget=math.inf, trials=4), "", began=0.0, spoke=0.0)
    endless.epochs = {"a": 10, "b": 5}
    assert share_done(endless) == 15 / 40


def test_with_a_table_costs_are_not_said_in_lines_and_it_is_drawn_twice_a_second(
    tmp_path: Path, advance: Advance
) -> None:
    said: list[str] = []
    shown: list[int] = []
    of = Progress(said.append, total=1, show=lambda one: shown.append(len(one.going)))
    run = make_run(tmp_path / "a")
    of.started(run)
    for number in range(101):
        write(run, float(number), float(number), epoch=number)
        of.look()
        advance(0.25)
    assert said == ["[1/1] random, seed 0: started"]
    assert shown == [1] * 51
    of.without_result(run, "it died")
    assert shown[-1] == 0


def test_lines_are_printed_as_they_are_above_the_table_which_goes_away(tmp_path: Path) -> None:
    console = terminal(60)
    line = "[2/3] a :smile: [red]word[/red] " + 60 * "x"
    with LiveTable(console) as table:
        table.say("before")
        of = Progress(table.say, total=1, show=table.show)
        of.started(make_run(tmp_path / "a"))
        table.say(line)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.startswith("before\n[1/1] random, seed 0: started\n")
    assert line in text
    assert text.count("1 going (1 starting)") >= 2  # drawn again below the line
    assert "\x1b[?25l\x1b[?25h" in text  # the cursor is not left hidden
    erased = text.rpartition("1 going (1 starting)")[2]
    assert erased.count("\x1b[2K") == 3


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (725, "12:05"), (11405, "3:10:05")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text
