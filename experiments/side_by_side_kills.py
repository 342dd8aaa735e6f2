"""Processes of a comparison killed at random moments while its runs go on side by side: its tables stay the same.

`tune-stn compare` of auto, random, pbt and replayed with room for two runs at a time. It is run once whole, which gives
its duration; then, in each round, it is disturbed twice at random moments: SIGKILL of the study's own process, of the
process of a run, or of a trial's process, or SIGINT to the study's process group, as Ctrl-C in a terminal. A study that
has ended is resumed at once, while processes of the one before may still be there, until it is done. Reports, schedule
and incumbents are compared bit for bit but for clock times and Tune's names of the trials. Prints a line a round;
results/side_by_side_kills/rounds.csv has them.

    python experiments/side_by_side_kills.py              # ten rounds, about half a minute each on 2 cores
    python experiments/side_by_side_kills.py --smoke-test
    python experiments/side_by_side_kills.py --rounds 3 --seed 5
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from driver_kills import TUNE_STN, counts, same, tables
from provenance import provenance

METHODS = "auto,random,pbt,replayed"
SETTINGS = {"epochs": 40, "train_images": 200, "hidden": 16, "warmup_epochs": 1, "response": "gate"}
BUDGET = 120
SMOKE_METHODS = "fixed,random"
SMOKE_SETTINGS = {"epochs": 6, "train_images": 100, "hidden": 16}
SMOKE_BUDGET = 12

KINDS = ("study", "run", "trial", "ctrl-c")
PROCESSES = {"run": "ray::Runner", "trial": "Trainable"}  # what is in their names
DISTURBANCES = 2  # a round, of two kinds
EARLIEST, LATEST = 0.2, 0.7  # of the whole study's duration after the last one: Ray starts in the first part of it
STARTS = 6  # of one study, at most
LEFT_AFTER_S = 20.0  # for processes of an ended study to end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "side_by_side_kills")
    arguments = parser.parse_args()
    rounds = 1 if arguments.smoke_test else arguments.rounds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        began = time.monotonic()
        code = start(whole, smoke=arguments.smoke_test, resume=False).wait()
        duration = time.monotonic() - began
        if code:
            sys.exit(f"the undisturbed study ended with {code}")
        expected = tables("cli", whole)
        print(f"whole study {duration:.0f} s, {len(expected['reports'])} reports", flush=True)
        for number in range(1, rounds + 1):
            draws = random.Random(f"{arguments.seed} {number}")
            folder = Path(scratch) / f"round-{number}"
            row = {"round": number, "whole_s": round(duration, 1)}
            row |= disturbed(folder, draws, duration, smoke=arguments.smoke_test)
            found = tables("cli", folder)
            row |= counts(found["reports"], expected["reports"])
            row |= {f"same_{name}": same(found[name], expected[name]) for name in expected}
            row["equal"] = not row["lost"] and not row["doubled"] and all(row[f"same_{name}"] for name in expected)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            if not row["equal"]:
                print(folder.with_suffix(".log").read_text(), flush=True)
            rows.append(row)
            table = pd.DataFrame(rows).assign(**provenance("ray"), cpus=os.cpu_count())
            arguments.results.mkdir(parents=True, exist_ok=True)
            table.to_csv(arguments.results / "rounds.csv", index=False)  # after each, for they take their time
    print(f"{table['equal'].sum()} of {len(table)} disturbed studies ended with the tables of the undisturbed one")
    if not table["equal"].all():
        sys.exit(1)


def start(folder: Path, *, smoke: bool, resume: bool) -> subprocess.Popen[bytes]:
    """The study as a process with a group of its own; its words are kept beside its directory."""
    methods, budget = (SMOKE_METHODS, SMOKE_BUDGET) if smoke else (METHODS, BUDGET)
    command = [*TUNE_STN, "compare", "--task", "digits-mlp", "--methods", methods, "--budget", str(budget)]
    command += ["--seeds", "1", "--max-concurrent", "2", "--out", str(folder), *["--resume"] * resume]
    settings = SMOKE_SETTINGS if smoke else SETTINGS
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def disturbed(folder: Path, draws: random.Random, duration: float, *, smoke: bool) -> dict[str, Any]:
    """Run a study, disturb it, and resume it until it is done; what was done to it, and how it ended."""
    seen: dict[int, psutil.Process] = {}
    done: list[str] = []
    codes: list[int] = []
    began = time.monotonic()
    study = start(folder, smoke=smoke, resume=False)
    kinds = draws.sample(KINDS, DISTURBANCES)
    for _ in range(DISTURBANCES):
        kind = kinds.pop()
        until = time.monotonic() + draws.uniform(EARLIEST, LATEST) * duration
        while study.poll() is None and (time.monotonic() < until or not there_is(study, kind)):
            seen |= {one.pid: one for one in descendants(study)}
            time.sleep(0.1)
        if study.poll() is None and disturb(study, kind, draws):
            done.append(f"{kind} after {time.monotonic() - began:.1f} s")
        if kind in ("study", "ctrl-c") and study.wait():
            codes.append(study.returncode)
            study = start(folder, smoke=smoke, resume=True)
    while study.wait():
        codes.append(study.returncode)
        if len(codes) >= STARTS:
            sys.exit(f"{folder} is not done after {STARTS} starts:\n{folder.with_suffix('.log').read_text()}")
        study = start(folder, smoke=smoke, resume=True)
    took = time.monotonic() - began
    _, left = psutil.wait_procs(list(seen.values()), timeout=LEFT_AFTER_S)
    names = sorted(name_of(one) for one in left)
    for one in left:
        one.kill()
    return {"disturbed": "; ".join(done), "exit_codes": " ".join(map(str, codes)), "took_s": round(took, 1)} | {
        "left": " ".join(names)
    }


def there_is(study: subprocess.Popen[bytes], kind: str) -> bool:
    """Whether the study has a process of a kind now."""
    return kind not in PROCESSES or any(PROCESSES[kind] in name_of(one) for one in descendants(study))


def disturb(study: subprocess.Popen[bytes], kind: str, draws: random.Random) -> bool:
    """Send the signal; False if there is no process of this kind."""
    if kind == "study":
        study.kill()
    elif kind == "ctrl-c":
        os.killpg(study.pid, signal.SIGINT)
    else:
        found = sorted((one for one in descendants(study) if PROCESSES[kind] in name_of(one)), key=lambda one: one.pid)
        if not found:
            return False
        draws.choice(found).kill()
    return True


def descendants(study: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(study.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:60] or process.name()
    except psutil.Error:
        return ""


if __name__ == "__main__":
    main()
