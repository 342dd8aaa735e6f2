"""The command line: what it says, what it refuses in one line, and what survives a kill or Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import ray
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from tune_stn.cli import main
from tune_stn.methods import METHODS
from tune_stn.study.results import Results, load_results
from tune_stn.tasks import TASKS, get_task
from tune_stn.tuning.cluster import Cluster

TUNE_STN = (sys.executable, "-c", "import sys; sys.argv[0] = 'tune-stn'; from tune_stn.cli import main; main()")

OWN = """
import time
from dataclasses import replace
from torch import nn
from tune_stn.tasks import get_task

def slow(outputs, targets):
    time.sleep(0.004)  # so that a run lasts long enough to be cut off in the middle of it
    return (outputs.argmax(-1) == targets).float().mean()

def make(*, width=16):
    plain = get_task("digits-mlp", train_images=100, hidden=width)
    training = replace(plain.training, epochs=100, warmup_epochs=0, eval_batch_size=2000, response="gate")
    return replace(plain, name="own", metrics={"accuracy": slow}, training=training)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a task module of the user's own."""
    (tmp_path / "own_cli_task.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_cli_task", raising=False)
    return tmp_path


def tune_stn(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


# What there is ------------------------------------------------------------------------------------------------------


def test_tasks_and_methods_are_listed_one_a_line_with_a_sentence() -> None:
    for command, names in (("tasks", TASKS), ("methods", METHODS)):
        done = tune_stn(command)
        assert done.exit_code == 0
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == list(names)
        assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["compare", "--help"], ["run", "-h"], ["export", "-h"]])
def test_help(arguments: Sequence[str]) -> None:
    done = tune_stn(*arguments)
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: ")
    if arguments[0] == "compare":
        options = ["task", "methods", "budget", "seeds", "out", "resume", "set", "address", "max-concurrent"]
        options += [
            "retry-failed",
            "cpus-per-trial",
            "gpus-per-trial",
            "resources",
            "label",
            "storage-path",
            "working-dir",
            "quiet",
        ]
        assert all(f"--{name} " in done.stdout for name in options)


def test_version() -> None:
    assert tune_stn("--version").stdout.split()[-1] == "0.1.0"


# What is refused ----------------------------------------------------------------------------------------------------

COMPARE = ("compare", "--task", "digits-mlp", "--methods", "fixed", "--budget", "3", "--seeds", "1", "--out", "out")
RUN = ("run", "--task", "digits-mlp", "--algorithm", "fixed", "--out", "out")


def but(command: Sequence[str], option: str, *values: str) -> list[str]:
    """The command with another value of an option, or without it, or with one more."""
    if option not in command:
        return [*command, option, *values]
    at = list(command).index(option)
    return [*command[:at], *([option, *values] if values else []), *command[at + 2 :]]


def test_a_folder_of_another_user_is_not_resumed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    (here / "out").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (here / "out").stat().st_uid + 1)
    done = tune_stn(*COMPARE, "--resume")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("tune-stn: --resume: out belongs to ")
    assert "if you trust it" in line


def test_a_full_disk_is_one_line_and_exit_code_1(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tune_stn.study.compare.write_study", full)
    monkeypatch.setattr("tune_stn.tuning.cluster.Cluster.session", lambda *_: nullcontext())
    monkeypatch.setattr("tune_stn.tuning.cluster.Cluster.check", lambda *_, **__: None)
    monkeypatch.setattr("tune_stn.study.compare.describe_cluster", lambda *_: {})
    done = tune_stn(*COMPARE)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tune-stn: No space left on device for out ")
    assert line.endswith("make room, then --resume goes on from there")


@pytest.mark.parametrize(
    "end",
    [
        lambda: os.kill(os.getpid(), signal.SIGINT),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
        lambda: sys.exit(signal.SIGTERM),  # as Ray's handler of SIGTERM, before a session has begun
    ],
)
def test_ctrl_c_or_sigterm_while_data_is_fetched_does_not_advise_to_resume(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[], None]
) -> None:
    def interrupted(folder: Path | None, *, progress: bool) -> Path:
        end()
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr("tune_stn.data.fashion_mnist.fetch", interrupted)
    # As a shell starts a command: jobs in its background ignore Ctrl-C, and other tests leave handlers behind.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    try:
        done = tune_stn("data", "fashion-mnist")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (done.exit_code, done.stderr) == (130, "tune-stn: interrupted, and can be started again\n")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
@pytest.mark.parametrize("missing", [[], [False], [True], [False, True]])
def test_the_exit_code_says_whether_every_run_has_a_result(
    here: Path, monkeypatch: pytest.MonkeyPatch, quiet: list[str], missing: list[bool]
) -> None:
    """A run without one is named on stderr, quiet or not; one of which some trials failed, among the tables."""
    entries = [
        {"method": "stn", "seed": seed, "reason": "it\ndied", "no_result": no_result}
        for seed, no_result in enumerate(missing)
    ]
    results = SimpleNamespace(study={"missing": entries})
    monkeypatch.setattr("tune_stn.study.compare.run_prepared", lambda *_, **__: results)
    monkeypatch.setattr("tune_stn.cli._show_tables", lambda results: print("tables"))
    done = tune_stn(*RUN, *quiet)
    assert done.exit_code == any(missing)
    lines = [f"incomplete: stn, seed {seed}: it died" for seed in range(len(missing))]
    assert done.stderr.splitlines() == [line for line, no_result in zip(lines, missing, strict=True) if no_result]
    others = [line for line, no_result in zip(lines, missing, strict=True) if not no_result]
    assert done.stdout.splitlines() == ([] if quiet else ["tables", *others])


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False), (False, True)])
def test_a_table_is_shown_in_a_terminal_alone_and_nothing_where_quiet(
    here: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool
) -> None:
    shown: list[bool] = []

    def run_prepared(prepared: object, say: Callable[[str], None], show: object = None) -> SimpleNamespace:
        say("a [line]")
        shown.append(show is not None)
        return SimpleNamespace(study={"missing": []})

    monkeypatch.setattr("tune_stn.study.compare.run_prepared", run_prepared)
    monkeypatch.setattr("tune_stn.cli._is_terminal", lambda: terminal)
    monkeypatch.setattr("tune_stn.cli._show_tables", lambda results: None)
    done = tune_stn(*RUN, *(["--quiet"] if quiet else []))
    assert done.stdout == ("" if quiet else "a [line]\n")
    assert shown == [terminal and not quiet]


# A study ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tuned: Path) -> Results:
    return load_results(tuned)


@pytest.mark.ray
def test_export_of_parquet_and_csv(study: Results, tmp_path: Path) -> None:
    for form in ("parquet", "csv"):
        done = tune_stn("export", str(study.path), "--to", str(tmp_path / form), "--format", form)
        assert done.exit_code == 0
        written = [Path(line) for line in done.stdout.splitlines()]
        assert [path.name for path in written] == [
            *(f"{name}.{form}" for name in ("reports", "schedule", "incumbent")),
            "study.json",
        ]
        read: Callable[[Path], pd.DataFrame] = pd.read_parquet if form == "parquet" else pd.read_csv
        for path, frame in zip(written, (study.reports, study.schedule, study.incumbent), strict=False):
            found = read(path)
            if form == "csv":
                found = found.astype({name: str(kind) for name, kind in frame.dtypes.items()})
                found = found.where(found.notna(), None) if "parent_trial_id" in found else found
            pd.testing.assert_frame_equal(
                found[[c for c in frame if c != "parent_trial_id"]],
                frame[[c for c in frame if c != "parent_trial_id"]],
                check_exact=True,
                check_dtype=False,
            )
        assert json.loads(written[-1].read_text()) == study.study


@pytest.mark.ray
def test_export_of_the_trained_model(study: Results, tmp_path: Path) -> None:
    done = tune_stn("export", str(study.path), "--to", str(tmp_path / "x"), "--model")
    assert done.exit_code == 0
    weights, values = (Path(line) for line in done.stdout.splitlines())
    model = get_task("digits-mlp", hidden=16).model()
    model.load_state_dict(load_file(weights))
    found = json.loads(values.read_text())
    assert (found["method"], found["hyperparameters"]) == ("stn", study.best().hyperparameters)
    for arguments, part in (
        (["--model", "--method", "random"], "--method random: the study in"),
        (["--method", "stn"], "--method, --seed and --task are for --model"),
        (["--model", "--task", "ridge"], "--task ridge: checkpoint"),
        (["--model", "--task", "nowhere:task"], "nowhere"),
    ):
        done = tune_stn("export", str(study.path), "--to", str(tmp_path / "y"), *arguments)
        assert (done.exit_code, part in done.stderr) == (2, True), done.stderr


@pytest.mark.ray
def test_export_to_where_nothing_can_be_written_or_in_an_unknown_format(study: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, parts in (
        (["--to", str(tmp_path / "file" / "x")], [str(tmp_path / "file" / "x"), "Not a directory"]),
        (["--to", str(tmp_path / "x"), "--format", "xlsx"], ["'xlsx'", "parquet, csv"]),
    ):
        done = tune_stn("export", str(study.path), *arguments)
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert all(part in line for part in parts)


@pytest.mark.ray
def test_report_writes_the_page_and_the_plots(study: Results, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study.path, copy, ignore=shutil.ignore_patterns("state", "report.html", "plots"))
    done = tune_stn("report", str(copy))
    assert done.exit_code == 0
    assert done.stdout.strip() == str(copy / "report.html")
    assert "<html" in (copy / "report.html").read_text()
    assert len(list((copy / "plots").glob("*.png"))) >= 2


@pytest.mark.ray
@pytest.mark.parametrize("name", ["reports", "schedule", "incumbent"])
def test_a_damaged_table_is_named(study: Results, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study.path, copy, ignore=shutil.ignore_patterns("state", "plots"))
    table = copy / f"{name}.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    for command in (["report", str(copy)], ["export", str(copy), "--to", str(tmp_path / "x")]):
        done = tune_stn(*command)
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert str(table) in line
        assert "damaged" in line


def test_a_report_that_is_watched_is_written_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def watch(directory: Path, every_s: float, say: Callable[[str], None]) -> SimpleNamespace:
        asked.append(every_s)
        say("a page")
        return SimpleNamespace(study={"missing": [{"method": "stn", "seed": 0, "reason": "it died"}]})

    monkeypatch.setattr("tune_stn.study.watch.watch", watch)
    for more in ([], ["--every", "0.5"]):
        done = tune_stn("report", str(tmp_path), "--watch", *more)
        assert (done.exit_code, done.stdout) == (0, "a page\n")
        assert done.stderr == "incomplete: stn, seed 0: it died\n"
    assert asked == [30.0, 0.5]
    for wrong, part in ((["--watch", "--every", "0"], "--every 0: accepted is"), (["--every", "5"], "is for --watch")):
        done = tune_stn("report", str(tmp_path), *wrong)
        assert (done.exit_code, part in done.stderr) == (2, True)


# Killed and interrupted ---------------------------------------------------------------------------------------------

BUDGET = 130.0  # STN: a whole trial of 60 epochs at 1.9 each, and a part of the second
CUT_OFF = ("compare", "--task", "own_cli_task:make", "--methods", "fixed,stn", "--budget", str(BUDGET), "--seeds", "1",
           "--set", "width=12", "--set", "epochs=60", "--max-concurrent", "2")  # fmt: skip


def processes_of(session: int) -> list[int]:
    """Processes of a session, the dead aside."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def cut_off(out: Path, here: Path, end: signal.Signals, lines: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Start the comparison, and send a signal when STN has made so many reports."""
    process = subprocess.Popen(
        [*TUNE_STN, *CUT_OFF, "--out", str(out), *more],
        cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    reports, lock = out / "state" / "stn-seed0" / "reports.jsonl", out / "state" / "stn-seed0.lock"
    before = lock.read_text() if lock.exists() else ""  # of a process that was killed
    try:
        until = time.monotonic() + 150
        while not (
            (reports.exists() and reports.read_bytes().count(b"\n") >= lines)
            and (lock.exists() and lock.read_text() not in ("", before))
        ):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, "no reports came"
            time.sleep(0.005)
        if end is signal.SIGINT:
            os.killpg(process.pid, end)  # as a terminal does
        else:
            process.send_signal(end)
        output, errors = process.communicate(timeout=100)
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert not (out / "state" / "stn-seed0" / "done.json").exists()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def timeless(frame: pd.DataFrame) -> pd.DataFrame:
    """Without clock times; trials by number instead of by Tune's names."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(frame["trial_id"]))}
    kept = frame.drop(columns=["wall_time_s", "device_time_s", "parent_trial_id"], errors="ignore")
    return kept.assign(trial_id=frame["trial_id"].map(numbers)).reset_index(drop=True)


@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("undrawn")
def test_what_was_killed_or_interrupted_goes_on_as_if_nothing_had_happened(
    here: Path, cluster: Cluster, modules: Path
) -> None:
    """Two runs of an own task side by side; killed once, then interrupted, against an untouched study."""
    shutil.copy(here / "own_cli_task.py", modules)
    out = here / "cut"
    killed = cut_off(out, here, signal.SIGKILL, 25)
    assert killed.returncode == -signal.SIGKILL
    interrupted = cut_off(out, here, signal.SIGINT, 45, "--resume")
    assert interrupted.returncode == 130
    assert interrupted.stderr.splitlines()[-1] == (
        "tune-stn: interrupted; the same command with --resume goes on from here"
    )
    entries = json.loads((out / "study.json").read_text())["missing"]
    (missing,) = (one for one in entries if one["method"] == "stn")
    assert re.fullmatch(r"not finished: cost [\d.]+ of 130 so far; resume the study to go on", missing["reason"])
    read = tune_stn("report", str(out))
    assert (read.exit_code, read.stdout) == (0, f"{out / 'report.html'}\n")
    assert read.stderr.splitlines() == [f"incomplete: {one['method']}, seed 0: {one['reason']}" for one in entries]
    finished = tune_stn(*CUT_OFF, "--out", str(out), "--resume")
    assert finished.exit_code == 0, finished.stderr

    assert tune_stn(*CUT_OFF, "--out", str(here / "whole")).exit_code == 0
    found, whole = load_results(out), load_results(here / "whole")
    for name in ("reports", "schedule", "incumbent"):
        table = getattr(found, name)
        assert set(table["method"]) == {"fixed", "stn"}
        pd.testing.assert_frame_equal(timeless(table), timeless(getattr(whole, name)), check_exact=True)
    assert found.reports.query("method == 'fixed'")["epoch"].tolist() == list(range(1, 61))
    assert whole.reports.groupby("method")["trial_id"].nunique().to_dict() == {"fixed": 1, "stn": 2}
