"""A study under fire: disturbed at a random moment, and gone on with until it is done or refuses by a clear error.

A round is one fault of one kind, drawn from the seed and the round's number:

- killed: a trial's process, a run's, the study's own, Ray's raylet or gcs_server (or
  either is stopped and so hangs), a node of a cluster of two, a driver
  of a plain `tune.Tuner` with the project's `Recorder`; Ctrl-C and SIGTERM; a trial's process suspended for seconds;
- the output's disk filled or read-only (a small tmpfs; without the right to mount, a limit on the size of files);
- a checkpoint, journal, table, `study.json` or `done.json` cut, flipped or deleted while the study is off;
- a second study on the same folder; the folder moved between stop and resume.

Then `tune-stn compare --resume` is given again until it ends with 0 or refuses. Tables are compared with those of an
undisturbed study, bit for bit but for clock times and Tune's names of the trials. Outcomes: `equal`; `refused`, by one
line that names the folder and what to do; and wrong ones: `different` tables, a `raw` traceback, a `hang`.

A row a round in results/faults/rounds.csv. Rounds that it has are not done again.

    python experiments/faults.py                     # 56 rounds, half a minute each on 2 cores
    python experiments/faults.py --kinds raylet gcs  # those rounds of the 56
    python experiments/faults.py --long --seed 1     # a worker is suspended for a minute
    python experiments/faults.py --smoke-test
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from pages import RESULTS, markdown
from provenance import provenance

METHODS, BUDGET = "auto,pbt,replayed", 40
SETTINGS = {"epochs": 20, "train_images": 100, "hidden": 16, "warmup_epochs": 1, "response": "gate"}
SMOKE_METHODS, SMOKE_BUDGET = "fixed,random", 12
SMOKE_SETTINGS = {"epochs": 6, "train_images": 100, "hidden": 16}
TUNER_TRIALS = 4

LATEST = 0.95  # of the undisturbed study's reports: a moment in reports is one on a busy machine, too
JITTER_S = 0.5  # after the report
STARTS = 5  # of one study, at most
HANGS_S = 180.0  # a study that has not ended so long after the last thing that happened to it
LOSS_S = 60.0  # a study whose ground is lost ends within
SUSPENDED_S, LONG_S = 5.0, 60.0
DISK = "16m"
CLOCKS = ["wall_time_s", "device_time_s"]
PROCESSES = {"worker": "Trainable", "run": "ray::Runner", "suspended worker": "Trainable"}  # what is in their names
FILES = {
    "checkpoint": "state/*/tune/*/*/checkpoint_*/*",
    "journal": "state/*/reports.jsonl",
    "table": "*.parquet",
    "schedule": "state/*/schedule.parquet",
    "study.json": "study.json",
    "done.json": "state/*/done.json",
}
TUNE_STN = [sys.executable, "-c", "import sys; sys.argv[0] = 'tune-stn'; from tune_stn.cli import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true", help="one round of a smaller study")
    parser.add_argument("--rounds", type=int, default=2 * len(KINDS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, moments and damage")
    parser.add_argument("--long", action="store_true", help="suspend a worker for a minute")
    parser.add_argument("--keep", type=Path, help="a folder for what is wrong")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "faults")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)  # the process that is killed, of `tuner`
    arguments = parser.parse_args()
    if arguments.drive is not None:
        drive_tuner(arguments.drive)
        return
    path = arguments.results / "rounds.csv"
    rows = pd.read_csv(path, dtype={"exit_codes": str}).to_dict("records") if path.exists() else []
    done = {(row["seed"], row["round"]) for row in rows}
    numbers = [0] if arguments.smoke_test else range(arguments.rounds)
    smoke_kind = (arguments.kinds or ["study"])[0]
    todo = []
    for number in numbers:
        kind = smoke_kind if arguments.smoke_test else list(KINDS)[number % len(KINDS)]
        if (arguments.seed, number) not in done and kind in (arguments.kinds or KINDS):
            todo.append((number, kind))
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = Undisturbed(Path(scratch), smoke=arguments.smoke_test, keep=arguments.keep)
        for number, kind in todo:
            row = one_round(undisturbed, number, kind, arguments.seed, LONG_S if arguments.long else SUSPENDED_S)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            rows.append(row | provenance("ray") | {"cpus": os.cpu_count()})
            arguments.results.mkdir(parents=True, exist_ok=True)  # after each, for they take their time
            table = pd.DataFrame(rows).sort_values(["seed", "round"])
            table.to_csv(path, index=False)
    wrong = [row for row in rows if row["outcome"] not in ("equal", "refused", "not tried")]
    print(f"{len(rows) - len(wrong)} of {len(rows)} rounds ended with the undisturbed tables, or a clear refusal")
    if wrong:
        sys.exit(1)


class Undisturbed:
    """Tables of what is not disturbed, made when they are asked for.

    Args:
        scratch: A folder for them and for the rounds.
        smoke: Whether the study is a small one.
        keep: A folder for what ended wrong, beside the undisturbed one; None to keep nothing.
    """

    def __init__(self, scratch: Path, *, smoke: bool, keep: Path | None) -> None:
        self.scratch = scratch
        self.keep = keep
        self.smoke = smoke
        self._known: dict[str, dict[str, pd.DataFrame]] = {}

    def of(self, what: str) -> dict[str, pd.DataFrame]:
        """Tables of a study (`cli`) or a plain Tuner's run (`tuner`)."""
        if what not in self._known:
            folder = self.scratch / f"whole-{what}"
            began = time.monotonic()
            code = Attempt(what, folder, smoke=self.smoke).start(resume=False).wait()
            if code:
                sys.exit(f"{what} ended undisturbed with {code}:\n{folder.with_suffix('.log').read_text()}")
            self._known[what] = tables(what, folder)
            print(f"undisturbed {what}: {time.monotonic() - began:.0f} s", flush=True)
        return self._known[what]


@dataclass
class Attempt:
    """A study, or a plain Tuner's run, that is started and disturbed; its words are kept beside its folder.

    Attributes:
        what: `cli` or `tuner`.
        folder: Of its output.
        smoke: Whether it is a small one.
        more: Further options.
        limit: Of the size of files that it may write, in bytes; None for none.
        codes: Exit codes so far.
        seen: Its processes that were seen.
        peak: The most memory that its own process had, in bytes.
    """

    what: str
    folder: Path
    smoke: bool = False
    more: tuple[str, ...] = ()
    limit: int | None = None
    codes: list[int | str] = field(default_factory=list)
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    peak: int = 0

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def words(self) -> str:
        """What the newest start said."""
        return self.log.read_text(errors="replace").rpartition(START)[2]

    def start(self, *, resume: bool) -> subprocess.Popen[bytes]:
        if self.what == "tuner":
            command = [sys.executable, str(Path(__file__).resolve()), "--drive", str(self.folder)]
        else:
            command = study_command(self.folder, smoke=self.smoke, resume=resume) + list(self.more)
        self.folder.parent.mkdir(parents=True, exist_ok=True)

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has its jobs in the background ignore it
            if self.limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))

        with open(self.log, "ab") as log:
            log.write(f"{START}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=prepare
            )  # fmt: skip
        return self.process

    def reports(self) -> int:
        """How many are recorded."""
        journals = "recorded/reports.jsonl" if self.what == "tuner" else "state/*/reports.jsonl"
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob(journals))

    def runs_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; False if it ended before, or hangs."""
        until = time.monotonic() + HANGS_S
        while self.process.poll() is None and time.monotonic() < until:
            if condition():
                return True
            self.look()
            time.sleep(0.05)
        return False

    def look(self) -> None:
        for one in self.descendants():
            self.seen[one.pid] = one
        with suppress(psutil.NoSuchProcess):
            self.peak = max(self.peak, psutil.Process(self.process.pid).memory_info().rss)

    def end(self) -> int | str:
        """Wait for the end of the newest start: its exit code, or `hang`."""
        self.runs_until(lambda: False)
        code: int | str = "hang"
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        else:
            code = self.process.returncode
        self.codes.append(code)
        return code

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def named(self, words: str) -> list[psutil.Process]:
        return sorted((one for one in self.descendants() if words in name_of(one)), key=lambda one: one.pid)

    def resume_until_done(self) -> int | str:
        """Give the command again until it ends with 0 or refuses; the last exit code."""
        code: int | str = self.codes[-1] if self.codes else 1
        while code and code not in (2, "hang") and len(self.codes) < STARTS:
            self.start(resume=True)
            code = self.end()
        return code

    def clear(self) -> None:
        """End what is left of it."""
        _, left = psutil.wait_procs(list(self.seen.values()), timeout=0.5)
        for one in left:
            one.kill()


START = "---- started"


def study_command(folder: Path, *, smoke: bool, resume: bool) -> list[str]:
    methods, budget = (SMOKE_METHODS, SMOKE_BUDGET) if smoke else (METHODS, BUDGET)
    settings = SMOKE_SETTINGS if smoke else SETTINGS
    command = [*TUNE_STN, "compare", "--task", "digits-mlp", "--methods", methods, "--budget", str(budget)]
    command += ["--seeds", "1", "--max-concurrent", "2", "--out", str(folder), *["--resume"] * resume]
    return [*command, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]


def one_round(undisturbed: Undisturbed, number: int, kind: str, seed: int, suspended_s: float) -> dict[str, Any]:
    """Disturb a study in one way, and go on with it: a row of the table."""
    draws = random.Random(f"{seed} {number}")
    what = "tuner" if kind == "tuner" else "cli"
    expected = undisturbed.of(what)
    attempt = Attempt(what, undisturbed.scratch / f"round-{number}" / "study", smoke=undisturbed.smoke)
    began = time.monotonic()
    row: dict[str, Any] = {"seed": seed, "round": number, "kind": kind}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, attempt.folder.parent, ignore_errors=True)
        fault = Fault(attempt, draws, len(expected["reports"]), stack, suspended_s)
        detail = KINDS[kind](fault)
        row |= {"detail": detail, "moment_s": round(fault.moment_s, 1)}
        if detail.startswith("not tried"):
            return row | {"outcome": "not tried"}
        code = attempt.codes[-1] if fault.over else attempt.resume_until_done()
        outcome, reason = judge(attempt, code, expected)
        outcome = fault.wrong or outcome
        attempt.clear()
        if outcome not in ("equal", "refused"):
            print(attempt.log.read_text(errors="replace")[-6000:], flush=True)
            if undisturbed.keep is not None:
                for source, name in (
                    (attempt.folder, f"round-{number}"),
                    (undisturbed.scratch / f"whole-{what}", what),
                ):
                    shutil.copytree(source, undisturbed.keep / name, dirs_exist_ok=True)
    return row | {
        "exit_codes": " ".join(map(str, attempt.codes)),
        "outcome": outcome,
        "reason": reason,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": round(attempt.peak / 2**20),
    }


def judge(attempt: Attempt, code: int | str, expected: Mapping[str, pd.DataFrame]) -> tuple[str, str]:
    """The outcome of a study that is gone on with no more, and the line that it was refused by."""
    words = attempt.words()
    if code == "hang":
        return "hang", ""
    if "Traceback (most recent call last)" in words and code:
        return "raw", words.strip().splitlines()[-1][:300]
    if code:
        lines = [line for line in words.splitlines() if line.startswith(("tune-stn: ", "incomplete: "))]
        clear = any(attempt.folder.name in line for line in lines)
        return ("refused" if clear else "unclear"), (lines or [""])[-1].replace(str(attempt.folder.parent), "")[:300]
    found = tables(attempt.what, attempt.folder)
    equal = all(same(found[name], expected[name]) for name in expected)
    counted = counts(found["reports"], expected["reports"])
    return ("equal" if equal else "different"), "" if equal else str(counted)


# The kinds of faults ------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """What a kind of fault needs.

    Attributes:
        attempt: To disturb.
        draws: Of the moment and all else.
        reports: Of the undisturbed study.
        stack: For what is to be undone after the round.
        suspended_s: For how long a worker is suspended.
        moment_s: When the fault came, in seconds after the start.
        wrong: The outcome, where it is wrong already.
        over: Whether nothing is to be gone on with.
    """

    attempt: Attempt
    draws: random.Random
    reports: int
    stack: ExitStack
    suspended_s: float
    moment_s: float = 0.0
    wrong: str = ""
    over: bool = False

    def begin(self, condition: Callable[[], bool] = lambda: True) -> bool:
        """Start, and wait for the moment; False if it ended before."""
        began = time.monotonic()
        self.attempt.start(resume=False)
        reports, later = self.draws.uniform(0, LATEST) * self.reports, self.draws.uniform(0, JITTER_S)
        came = self.attempt.runs_until(lambda: self.attempt.reports() >= reports)
        until = time.monotonic() + later
        came = came and self.attempt.runs_until(lambda: time.monotonic() >= until and condition())
        self.moment_s = time.monotonic() - began
        return came

    def ends_soon(self) -> None:
        """The study says what it has lost, within a minute, and ends with 1; or had all it needed."""
        began = time.monotonic()
        code = self.attempt.end()
        words = self.attempt.words()
        if code == 0:
            return
        if time.monotonic() - began > LOSS_S:
            self.wrong = "late"
        elif "Traceback (most recent call last)" in words:
            self.wrong = "raw"
        elif code != 1 or not any(line.startswith("tune-stn: ") and "--resume" in line for line in words.splitlines()):
            self.wrong = "unclear"


def process_killed(kind: str) -> Callable[[Fault], str]:
    def fault(fault: Fault) -> str:
        words = PROCESSES[kind]
        if not fault.begin(lambda: bool(fault.attempt.named(words))):
            fault.attempt.end()
            return "it had ended before"
        fault.draws.choice(fault.attempt.named(words)).kill()
        fault.attempt.end()
        return "SIGKILL"

    return fault


def study_sent(number: signal.Signals, code: int) -> Callable[[Fault], str]:
    def fault(fault: Fault) -> str:
        if not fault.begin():
            fault.attempt.end()
            return "it had ended before"
        fault.attempt.process.send_signal(number)
        if fault.attempt.end() not in (code, 0):
            fault.wrong = "unclear"
        return number.name

    return fault


def server_sent(number: signal.Signals, name: str) -> Callable[[Fault], str]:
    """One of Ray's servers is killed, or hangs."""

    def fault(fault: Fault) -> str:
        def found() -> list[psutil.Process]:
            return [one for one in fault.attempt.descendants() if name_of(one).partition(" ")[0].endswith(name)]

        if not fault.begin(lambda: bool(found() and list(fault.attempt.folder.glob("state/*/reports.jsonl")))):
            fault.attempt.end()
            return "it had ended before"
        sent = found()
        for one in sent:
            one.send_signal(number)
        fault.ends_soon()
        left = [one for one in sent if one.is_running() and one.status() == psutil.STATUS_STOPPED]
        for one in left:
            one.kill()
        return f"{number.name}{', and left behind' if left else ''}"

    return fault


def node_killed(fault: Fault) -> str:
    """A cluster of a head and a node with a CPU each; the node is killed, the study goes on on the head."""
    token = fault.attempt.folder.parent / "token"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("ab" * 32)
    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    fault.stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
    port = free_port()
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", "--num-cpus=1"]
    here = "127.0.0.2"  # Ray would rewrite 127.0.0.1 to the machine's outer address
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of Ray's sockets must be short
    fault.stack.callback(shutil.rmtree, folder, ignore_errors=True)
    servers = []
    for more in (
        ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", f"--node-ip-address={here}"],
        [f"--address={here}:{port}", f"--node-ip-address={here}"],
    ):
        with open(fault.attempt.folder.with_suffix(".ray.log"), "ab") as log:
            servers.append(subprocess.Popen([*ray, *more], stdout=log, stderr=log, start_new_session=True))
        fault.stack.callback(end_tree, servers[-1])
        time.sleep(8)
    fault.attempt.more = ("--address", f"{here}:{port}")
    if not fault.begin(lambda: bool(list(fault.attempt.folder.glob("state/*/reports.jsonl")))):
        fault.attempt.end()
        return "it had ended before"
    end_tree(servers[1])
    fault.attempt.end()
    return "SIGKILL"


def worker_suspended(fault: Fault) -> str:
    words = PROCESSES["suspended worker"]
    if not fault.begin(lambda: bool(fault.attempt.named(words))):
        fault.attempt.end()
        return "it had ended before"
    one = fault.draws.choice(fault.attempt.named(words))
    try:
        one.suspend()
        until = time.monotonic() + fault.suspended_s
        fault.attempt.runs_until(lambda: time.monotonic() >= until)
        one.resume()
    except psutil.NoSuchProcess:
        pass
    fault.attempt.end()
    return f"SIGSTOP for {fault.suspended_s:g} s"


def disk_filled(fault: Fault) -> str:
    folder = fault.attempt.folder = small_disk(fault) / "study"
    if folder.parent.name != "disk":  # nothing can be mounted here
        fault.attempt.limit = 20_000
        fault.attempt.start(resume=False)
        fault.ends_soon()
        fault.attempt.limit = None
        return "limit of 20 kB a file"
    came = fault.begin(lambda: bool(list(folder.glob("state/*/reports.jsonl"))))
    filler = folder.parent / "filler"
    with open(filler, "wb", buffering=0) as file:
        size = 2**16
        while came and size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    fault.ends_soon()
    filler.unlink()
    return f"a disk of {DISK}"


def made_read_only(fault: Fault) -> str:
    disk = small_disk(fault)
    if disk.name != "disk":
        return "not tried: nothing can be mounted here"
    fault.attempt.folder = disk / "study"
    if not fault.begin(lambda: bool(list(fault.attempt.folder.glob("state/*/reports.jsonl")))):
        fault.attempt.end()
        return "it had ended before"
    # Files that are open for writing keep a disk from being mounted anew: a second mount covers it.
    for options in (["--bind", str(disk), str(disk)], ["-o", "remount,bind,ro", str(disk)]):
        subprocess.run(["mount", *options], check=True)
    log = fault.attempt.log
    fault.ends_soon()
    subprocess.run(["umount", "-l", str(disk)], check=True)
    assert log.exists()
    return "a bind mount over it"


def small_disk(fault: Fault) -> Path:
    """A mounted folder called `disk`; another one where nothing can be mounted."""
    disk = fault.attempt.folder.parent / "disk"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return disk.parent
    fault.stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=False)
    return disk


def damaged(file: str, action: str) -> Callable[[Fault], str]:
    """A file of a study that is off: interrupted at a moment, or finished where there is such a file only then."""

    def fault(fault: Fault) -> str:
        attempt = fault.attempt
        finished = file in ("table", "schedule", "done.json") or fault.draws.random() < 0.3
        if finished:
            attempt.start(resume=False)
        elif fault.begin(lambda: bool(list(attempt.folder.glob(FILES[file])))):
            attempt.process.send_signal(signal.SIGINT)
        attempt.end()
        found = sorted(path for path in attempt.folder.glob(FILES[file]) if path.stat().st_size)
        if not found:
            return "no such file"
        path = fault.draws.choice(found)
        damage(path, action, fault.draws)
        if attempt.codes[-1] == 0:
            attempt.start(resume=True)
            attempt.end()
        name = path.relative_to(attempt.folder).as_posix()
        return f"{action} {name if file != 'checkpoint' else path.name}, {'finished' if finished else 'interrupted'}"

    return fault


def damage(path: Path, action: str, draws: random.Random) -> None:
    """Cut a file short, flip a bit of it, or delete it."""
    if action == "delete":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    place = draws.randrange(len(data))
    if action == "cut":
        del data[place:]
    else:
        data[place] ^= 1 << draws.randrange(8)
    path.write_bytes(bytes(data))


def second_study(fault: Fault) -> str:
    if not fault.begin(lambda: (fault.attempt.folder / "study.json").exists()):
        fault.attempt.end()
        return "it had ended before"
    resume = fault.draws.random() < 0.5
    command = study_command(fault.attempt.folder, smoke=fault.attempt.smoke, resume=resume)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGS_S)
    if fault.attempt.process.poll() is None and done.returncode != 2:
        fault.wrong = "both ran"
    fault.attempt.end()
    return f"the other {'with' if resume else 'without'} --resume: {done.returncode}"


def folder_moved(fault: Fault) -> str:
    if not fault.begin():
        fault.attempt.end()
        return "it had ended before"
    fault.attempt.process.send_signal(signal.SIGINT)
    fault.attempt.end()
    if not fault.attempt.folder.exists():
        return "before there was a folder"
    place = fault.attempt.folder.parent / "elsewhere" / "moved"
    place.parent.mkdir()
    fault.attempt.folder.rename(place)
    fault.attempt.folder = place
    return "renamed"


def tuner_killed(fault: Fault) -> str:
    if fault.begin():
        fault.attempt.process.kill()
    fault.attempt.end()
    return "SIGKILL"


KINDS: dict[str, Callable[[Fault], str]] = {
    "worker": process_killed("worker"),
    "run": process_killed("run"),
    "study": study_sent(signal.SIGKILL, -signal.SIGKILL),
    "ctrl-c": study_sent(signal.SIGINT, 130),
    "sigterm": study_sent(signal.SIGTERM, 130),
    "raylet": server_sent(signal.SIGKILL, "raylet"),
    "gcs": server_sent(signal.SIGKILL, "gcs_server"),
    "node": node_killed,
    "tuner": tuner_killed,
    "suspended worker": worker_suspended,
    "full disk": disk_filled,
    "read-only": made_read_only,
    "second study": second_study,
    "moved": folder_moved,
    "checkpoint cut": damaged("checkpoint", "cut"),
    "checkpoint flipped": damaged("checkpoint", "flip"),
    "checkpoint deleted": damaged("checkpoint", "delete"),
    "journal cut": damaged("journal", "cut"),
    "journal flipped": damaged("journal", "flip"),
    "journal deleted": damaged("journal", "delete"),
    "table flipped": damaged("table", "flip"),
    "table deleted": damaged("table", "delete"),
    "schedule flipped": damaged("schedule", "flip"),
    "study.json cut": damaged("study.json", "cut"),
    "done.json cut": damaged("done.json", "cut"),
    "done.json flipped": damaged("done.json", "flip"),
    "raylet hung": server_sent(signal.SIGSTOP, "raylet"),
    "gcs hung": server_sent(signal.SIGSTOP, "gcs_server"),
}


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.2", 0)) as server:
        return int(server.getsockname()[1])


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that we started, and all that it started."""
    try:
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for one in tree:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


# What somebody with a Tuner writes ----------------------------------------------------------------------------------


def drive_tuner(folder: Path) -> None:
    """Begun, or restored."""
    from tune_stn.tuning.token import protect

    protect()
    from ray import tune
    from ray.tune.search import BasicVariantGenerator

    from tune_stn.tasks import get_task
    from tune_stn.tuning.cluster import Cluster
    from tune_stn.tuning.recording.recorder import Recorder
    from tune_stn.tuning.trainable import STNTrainable

    trainable = tune.with_resources(STNTrainable, {"cpu": 1})
    with Cluster().session():
        if tune.Tuner.can_restore(str(folder / "run")):
            tuner = tune.Tuner.restore(str(folder / "run"), trainable=trainable)
        else:
            hp = get_task("digits-mlp", **SETTINGS).space.to_tune()
            tuner = tune.Tuner(
                trainable,
                param_space={"task": "digits-mlp", "algorithm": "stn", "hp": hp, **SETTINGS},
                tune_config=tune.TuneConfig(
                    search_alg=BasicVariantGenerator(max_concurrent=1, random_state=0), num_samples=TUNER_TRIALS
                ),
                run_config=tune.RunConfig(
                    name="run",
                    storage_path=str(folder),
                    # Of a run killed before Tune had saved it, there may be reports already.
                    callbacks=[Recorder(folder / "recorded", overwrite=True)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2, num_to_keep=2),
                    failure_config=tune.FailureConfig(max_failures=3),
                    verbose=0,
                ),
            )
        tuner.fit()


# Comparing ----------------------------------------------------------------------------------------------------------


def tables(what: str, folder: Path) -> dict[str, pd.DataFrame]:
    """The final tables without clock times; trials by number."""
    directory = folder if what == "cli" else folder / "recorded"
    names = ("reports", "schedule", "incumbent") if what == "cli" else ("reports", "schedule")
    return {name: numbered(pd.read_parquet(directory / f"{name}.parquet")) for name in names}


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(frame["trial_id"]))}
    kept = frame.drop(columns=[name for name in CLOCKS if name in frame])
    named = {name: kept[name].map(numbers) for name in ("trial_id", "parent_trial_id") if name in kept}
    return kept.assign(**named).reset_index(drop=True)


def same(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    """To the last bit, and NaN where NaN is."""
    return found.equals(expected)


def counts(found: pd.DataFrame, expected: pd.DataFrame) -> dict[str, int]:
    """Reports that are missing against the whole run or inside a trial, and that are there twice."""
    key = ["method", "seed", "trial_id", "epoch"]
    gaps = sum(int(trial["epoch"].max()) - trial["epoch"].nunique() for _, trial in found.groupby(key[:3]))
    doubled = found.duplicated(key).sum() + found.duplicated([*key[:3], "report_index"]).sum()
    absent = set(map(tuple, expected[key].to_numpy())) - set(map(tuple, found[key].to_numpy()))
    return {"reports": len(found), "lost": len(absent) + gaps, "doubled": int(doubled)}


def page_table() -> str:
    table = pd.read_csv(RESULTS / "faults" / "rounds.csv")
    rows = []
    for kind in dict.fromkeys(table["kind"]):
        rounds = table[table["kind"] == kind]
        counts = [str((rounds["outcome"] == outcome).sum()) for outcome in ("equal", "refused")]
        other = ", ".join(rounds.loc[~rounds["outcome"].isin(["equal", "refused"]), "outcome"])
        rows.append([kind, str(len(rounds)), *counts, other, f"{rounds['seconds'].max():.0f}"])
    header = ["fault", "rounds", "ended with the undisturbed tables", "refused by a line that says why", "other"]
    return markdown([*header, "s at most"], rows)


TABLES: Mapping[str, Callable[[], str]] = {"faults": page_table}


if __name__ == "__main__":
    main()
