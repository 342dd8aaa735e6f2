"""A driver killed at random moments, and the run taken up again: the tables are those of a run that was left alone.

`tune-stn compare` with methods whose order is deterministic where one trial runs at a time (stn, delta-stn, fixed,
random), and a plain `tune.Tuner(STNTrainable, ...)` with the project's `Recorder`. Each is run once whole, which gives
its duration; then it is started again and again, killed (SIGKILL, the driver's process alone) at a random moment, one
in each tenth of that duration, and taken up by `tune-stn compare --resume` or `Tuner.restore`. Compared are reports and
schedule, and in a comparison the incumbents, bit for bit but for clock times and Tune's names of the trials; that no
report is lost or doubled is counted beside. Prints a line a kill; results/driver_kills/kills.csv has them, and which of
Ray's processes were there still some seconds after the driver.

    python experiments/driver_kills.py              # ten kills each, about a minute a kill on 2 cores
    python experiments/driver_kills.py --smoke-test
    python experiments/driver_kills.py --what tuner --kills 3 --seed 5
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

METHODS = "stn,delta-stn,fixed,random"
# Trials of a second or two each, several for every method but fixed, so that kills come in the middle of trials,
# between them, between methods and while tables are written.
SETTINGS = {"epochs": 30, "warmup_epochs": 2, "train_images": 200, "response": "gate"}
BUDGET, TRIALS = 90, 4
SMOKE: dict[str, Any] = {"methods": "stn", "budget": 12, "trials": 1, "kills": 1}
SMOKE_SETTINGS = {"epochs": 8, "warmup_epochs": 0, "train_images": 100, "hidden": 16, "response": "gate"}

GONE_AFTER_S = 5.0  # what Ray's processes get to end by themselves when their driver is gone
CLOCKS = ["wall_time_s", "device_time_s"]
TUNE_STN = [sys.executable, "-c", "import sys; sys.argv[0] = 'tune-stn'; from tune_stn.cli import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--what", choices=("cli", "tuner"), nargs="+", default=["cli", "tuner"])
    parser.add_argument("--kills", type=int, default=10, help="of each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "driver_kills")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)  # the process that is killed, of `tuner`
    arguments = parser.parse_args()
    if arguments.drive is not None:
        drive_tuner(arguments.drive, smoke=arguments.smoke_test)
        return
    kills = SMOKE["kills"] if arguments.smoke_test else arguments.kills
    rows: list[dict[str, Any]] = []
    for what in arguments.what:
        draws = random.Random(f"{arguments.seed} {what}")
        with tempfile.TemporaryDirectory() as scratch:
            rows += study(what, kills, draws, Path(scratch), smoke=arguments.smoke_test)
    versions = {f"version_{name}": metadata.version(name) for name in ("tune_stn", "ray", "torch")}
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    arguments.results.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows).assign(**versions, machine=platform.machine(), cpus=os.cpu_count(), command=command)
    path = arguments.results / "kills.csv"
    if path.exists():  # what is not run now stays
        before = pd.read_csv(path)
        pd.concat([before[~before["what"].isin(arguments.what)], table]).to_csv(path, index=False)
    else:
        table.to_csv(path, index=False)
    print(f"{table['equal'].sum()} of {len(table)} killed runs ended with the tables of the run left alone")
    if not table["equal"].all():
        sys.exit(1)


def study(what: str, kills: int, draws: random.Random, scratch: Path, *, smoke: bool) -> list[dict[str, Any]]:
    """The whole run, and the killed ones: a row each."""
    command = cli_command if what == "cli" else tuner_command
    whole = scratch / "whole"
    began = time.monotonic()
    finish(command(whole, smoke=smoke, resume=False), whole)
    duration = time.monotonic() - began
    expected = tables(what, whole)
    print(f"{what}: whole run {duration:.0f} s, {len(expected['reports'])} reports", flush=True)
    rows = []
    for number in range(1, kills + 1):
        folder = scratch / f"kill-{number}"
        while True:
            moment = draws.uniform((number - 1) / kills, number / kills) * duration
            began = time.monotonic()
            came, left = kill(command(folder, smoke=smoke, resume=False), moment)
            if came:
                break
            duration = min(duration, time.monotonic() - began)  # this one was over before its moment
            shutil.rmtree(folder)
        phase = phase_of(what, folder)
        finish(command(folder, smoke=smoke, resume=True), folder)
        found = tables(what, folder)
        row: dict[str, Any] = {"what": what, "kill": number, "moment_s": round(moment, 2), "phase": phase}
        row |= {"run_s": round(duration, 1), "left": " ".join(left), **counts(found["reports"], expected["reports"])}
        row |= {f"same_{name}": same(found[name], expected[name]) for name in expected}
        row["equal"] = not row["lost"] and not row["doubled"] and all(row[f"same_{name}"] for name in expected)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        rows.append(row)
        shutil.rmtree(folder)
    return rows


# What is run --------------------------------------------------------------------------------------------------------


def cli_command(folder: Path, *, smoke: bool, resume: bool) -> list[str]:
    methods, budget = (SMOKE["methods"], SMOKE["budget"]) if smoke else (METHODS, BUDGET)
    settings = SMOKE_SETTINGS if smoke else SETTINGS
    command = [*TUNE_STN, "compare", "--task", "digits-mlp", "--methods", methods, "--budget", str(budget)]
    command += ["--seeds", "1", "--max-concurrent", "1", "--out", str(folder), *["--resume"] * resume]
    return [*command, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


def tuner_command(folder: Path, *, smoke: bool, resume: bool) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--drive", str(folder), *["--smoke-test"] * smoke]


def drive_tuner(folder: Path, *, smoke: bool) -> None:
    """What somebody with a `Tuner` would write, begun or restored."""
    from tune_stn.tuning.token import protect

    protect()
    from ray import tune
    from ray.tune.search import BasicVariantGenerator

    from tune_stn.tasks import get_task
    from tune_stn.tuning.cluster import Cluster
    from tune_stn.tuning.recorder import Recorder
    from tune_stn.tuning.trainable import STNTrainable

    settings = SMOKE_SETTINGS if smoke else SETTINGS
    trainable = tune.with_resources(STNTrainable, {"cpu": 1})
    with Cluster().session():
        if tune.Tuner.can_restore(str(folder / "run")):
            tuner = tune.Tuner.restore(str(folder / "run"), trainable=trainable)
        else:
            hp = get_task("digits-mlp", **settings).space.to_tune()
            tuner = tune.Tuner(
                trainable,
                param_space={"task": "digits-mlp", "algorithm": "stn", "hp": hp, **settings},
                tune_config=tune.TuneConfig(
                    search_alg=BasicVariantGenerator(max_concurrent=1, random_state=0),
                    num_samples=SMOKE["trials"] if smoke else TRIALS,
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


# Killing, and going on ----------------------------------------------------------------------------------------------


def kill(command: list[str], moment: float) -> tuple[bool, list[str]]:
    """Start a run and kill its process so many seconds later.

    Returns:
        Whether it still ran; and the names of those of Ray's processes that were there after GONE_AFTER_S, which are
        killed then so that they do not disturb what follows.
    """
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        driver.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        driver.send_signal(signal.SIGKILL)
    came = driver.wait() == -signal.SIGKILL
    until = time.monotonic() + GONE_AFTER_S
    while processes_of(driver.pid) and time.monotonic() < until:
        time.sleep(0.05)
    left = processes_of(driver.pid)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return came, sorted(left.values())


def finish(command: list[str], folder: Path) -> None:
    """Run to the end; its own words come only with a failure."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode} in {folder}:\n{done.stdout}")


def processes_of(session: int) -> dict[int, str]:
    """Processes of a session that we started, by their names; the dead aside."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                name = (entry / "cmdline").read_text().split("\0")[0].strip()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(entry.name)] = Path(name).name
    return found


def phase_of(what: str, folder: Path) -> str:
    """How far a run had come, from what is on the disk."""
    if what == "tuner":
        journal, unfinished, begun = folder / "recorded" / "reports.jsonl", True, folder.exists()
    else:
        # In the order of their beginning.
        states = sorted((folder / "state").glob("*-seed0"), key=lambda path: path.stat().st_mtime)
        journal = (states[-1] if states else folder) / "reports.jsonl"
        unfinished, begun = not (journal.parent / "done.json").exists(), (folder / "study.json").exists()
    reports = journal.read_bytes().count(b"\n") if journal.exists() else 0
    if not begun:
        return "before the start"
    name = journal.parent.name.removesuffix("-seed0") if what == "cli" else "run"
    return f"{name}, {reports} reports" + ("" if unfinished else ", finished")


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


if __name__ == "__main__":
    main()
