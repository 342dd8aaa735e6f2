"""A study under load: 2,000 trials of a tenth of a second, and a schedule of 50 hyperparameters at 100,000 steps.

    trials   `tune-stn compare` of a random search, whose trials sleep a tenth of a second and report once: memory of
             the driver, of the trials' processes, and of everything that the study started, at each quarter of it
    records  a run of one self-tuning trial with a record of all its hyperparameters after every step: what a study does
             with it, from the trial's checkpoint to the tables, exports and the schedule for a replay

Writes trials.csv and records.csv to experiments/results/load.

    python experiments/load.py                 # some fifteen minutes on 2 cores
    python experiments/load.py records
    python experiments/load.py --smoke-test
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from export_scale import first_report, peak_mb
from provenance import provenance
from torch import nn

from tune_stn.methods import get_method
from tune_stn.nn import WeightDecay
from tune_stn.space import LogUniform, SearchSpace
from tune_stn.study.collect import write_tables
from tune_stn.study.description import describe
from tune_stn.study.report import write_report
from tune_stn.study.results import export_results, load_results
from tune_stn.study.run import Run
from tune_stn.study.seal import SCHEDULE, write_done
from tune_stn.study.state import state_folder
from tune_stn.tasks import Task, get_task
from tune_stn.training.schedule import Schedule
from tune_stn.training.schedule_buffer import ScheduleBuffer, write_schedule
from tune_stn.training.schedule_sources import read_frame
from tune_stn.training.tables import write_parquet
from tune_stn.tuning.recording.directory import write_study
from tune_stn.tuning.recording.journal import REPORTS
from tune_stn.tuning.recording.recorder import Recorder
from tune_stn.tuning.recording.tables import read_recorded, schedule_rows

TRIALS, TRIAL_S = 2000, 0.1
HYPERPARAMETERS, RECORDS = 50, 100_000
PARTS = 4  # of the trials
LOOK_EVERY_S = 2.0
# What is in the command lines of a study's processes.
PROCESSES = {"trials": "Trainable", "gcs_server": "gcs_server", "raylet": "raylet/raylet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("trials", "records"), nargs="*", help="default both")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "load")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Path, bool], pd.DataFrame]] = {"trials": trials, "records": records}
    for name in arguments.part or parts:
        with tempfile.TemporaryDirectory() as folder:
            table = parts[name](Path(folder), arguments.smoke_test)
        print(f"\n{name}\n{table.to_string(index=False, float_format='%.2f')}", flush=True)
        table = table.assign(**provenance("ray", "pyarrow", "pandas"), cpus=os.cpu_count())
        table.to_csv(arguments.results / f"{name}.csv", index=False, float_format="%.2f")


# Many short trials --------------------------------------------------------------------------------------------------


def brief() -> Task:
    """Ridge regression, for an epoch, whose model takes a tenth of a second to make."""

    def model() -> nn.Module:
        time.sleep(TRIAL_S)
        return nn.Linear(20, 1, bias=False)

    return replace(get_task("ridge", epochs=1), name="brief", model=model)


def trials(folder: Path, smoke: bool) -> pd.DataFrame:
    """A row for each quarter of a study."""
    count = 8 if smoke else TRIALS
    out = folder / "study"
    tune_stn = "import sys; sys.argv[0] = 'tune-stn'; from tune_stn.cli import main; main()"
    command = [sys.executable, "-c", tune_stn, "compare", "--task", "load:brief", "--methods", "random", "--seeds", "1"]
    command += ["--budget", str(count), "--no-rehearsal", "--quiet", "--out", str(out)]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=Path(__file__).parent)
    rows: list[dict[str, Any]] = []
    newest: dict[str, Any] = {}
    while process.poll() is None:
        ended = sum(path.read_bytes().count(b"\n") for path in out.glob(f"state/*/{REPORTS}"))
        if ended:
            newest = {"trials": ended, "seconds": time.monotonic() - began, **memory(process.pid)}
        if newest and ended >= count * (len(rows) + 1) / PARTS:
            rows.append(newest)
            print(newest, flush=True)
        time.sleep(0.2 if smoke else LOOK_EVERY_S)
    if process.returncode:
        raise SystemExit(f"the study ended with {process.returncode}")
    reports = load_results(out).reports
    if reports["trial_id"].nunique() != count:
        raise SystemExit(f"the tables have {reports['trial_id'].nunique()} trials of {count}")
    # After the last trial: all is in the tables.
    return pd.DataFrame(rows).assign(seconds_in_all=time.monotonic() - began)


def memory(pid: int) -> dict[str, float]:
    """In MB, of the driver, of processes with a name, and of the whole tree; what processes share is shared out."""
    found = dict.fromkeys(("driver_mb", *(f"{name}_mb" for name in PROCESSES), "all_mb", "processes"), 0.0)
    for one in tree(pid):
        with suppress(psutil.NoSuchProcess):
            command, size = " ".join(one.cmdline()), one.memory_full_info().pss / 1e6
            found["all_mb"] += size
            found["processes"] += 1
            if one.pid == pid:
                found["driver_mb"] = size
            for name, words in PROCESSES.items():
                found[f"{name}_mb"] += size if words in command else 0
    return found


def tree(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        yield psutil.Process(pid)
        yield from psutil.Process(pid).children(recursive=True)


# Many records -------------------------------------------------------------------------------------------------------


def records(folder: Path, smoke: bool) -> pd.DataFrame:
    """A row for each stage."""
    hps, steps = (5, 20) if smoke else (HYPERPARAMETERS, RECORDS)
    space = SearchSpace({f"hp{number:02}": LogUniform(1e-3, 1e1) for number in range(hps)})
    ridge = get_task("ridge")
    task = replace(ridge, space=space, start=dict.fromkeys(space, 1.0), penalties=tuple(map(WeightDecay, space)))
    method = get_method("stn")
    run = Run(
        task=task,
        config={},
        method=method,
        seed=0,
        budget=100.0,
        trials=None,
        folder=state_folder(folder, method.name, 0),
    )
    rows = [{"stage": "before", "seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": peak_mb()}]

    def timed(stage: str, do: Callable[[], Any]) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        found = do()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        rows.append({"stage": stage, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb()})
        print(rows[-1], flush=True)
        return found

    own = folder / "checkpoint.parquet"
    timed(
        "checkpoint",
        lambda: write_schedule(filled(space, steps), space, tuned=True, until=steps - 1, trial_id=TRIAL, path=own),
    )
    timed("end of the run", lambda: end_run(run, own, steps))
    study = describe(task, None, [method], [0], run.budget, None, {}) | {"clocks": [], "remarks": []}
    write_study(folder, study)
    timed("tables", lambda: write_tables(task, [run], folder))
    results = timed("load", lambda: load_results(folder))
    if len(results.schedule) != hps * steps:
        raise SystemExit(f"the table has {len(results.schedule)} rows of {hps * steps}")
    timed("report", lambda: write_report(results))
    for format in ("parquet", "csv"):
        timed(f"export {format}", lambda format=format: export_results(results, folder / format, format))
    schedule = timed("schedule", lambda: Schedule.from_parquet(folder / SCHEDULE, trial_id=TRIAL))
    if schedule.values.shape != (steps, hps):
        raise SystemExit(f"the schedule is of shape {schedule.values.shape}")
    timed("replay of all steps", lambda: [schedule.at(step) for step in range(steps)])
    return pd.DataFrame(rows).assign(hyperparameters=hps, records=steps)


TRIAL = "00000_00000"


def filled(space: SearchSpace, steps: int) -> ScheduleBuffer:
    """A buffer as a run of so many hyper-steps leaves it."""
    buffer = ScheduleBuffer()
    raw = torch.randn(steps, len(space), generator=torch.Generator().manual_seed(0)).cumsum(0) / steps
    buffer.steps, buffer.epochs = list(range(steps)), [step // 1000 for step in range(steps)]
    buffer.sources = ["start", *["stn"] * (steps - 1)]  # type: ignore[list-item]
    buffer.raw, buffer.scale = list(raw), list(torch.full_like(raw, 0.5))
    return buffer


def end_run(run: Run, own: Path, steps: int) -> None:
    """What `execute` does when the trial has ended, beside asking Tune for it."""
    names = list(run.task.space)
    recorder = Recorder(run.folder, hps=names, write_every_s=None)
    trial: Any = Trial()
    recorder.on_trial_start(0, [trial], trial)
    own_values = {key: 1.0 for name in names for key in (f"hp/{name}", f"scale/{name}")}
    report = {name: value for name, value in first_report().items() if not name.endswith("/penalty")}
    recorder.on_trial_result(0, [trial], trial, report | own_values | {"step": steps - 1, "status": "finished"})
    frame = read_frame(own).assign(trial_id=TRIAL, until=steps - 1)
    recorded = read_recorded(recorder.path)
    schedule = schedule_rows(recorded, frame)
    write_parquet(schedule, run.folder / SCHEDULE)
    record = {"trials": 1, "cost_total": 1.0, "failures": {}, "hopeless": False}
    write_done(run.folder, record, reports=len(recorded.reports), schedule=len(schedule))


class Trial:
    """As much of a trial of Tune's as the recorder looks at."""

    trial_id, checkpoint, path = TRIAL, None, None

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"hp": {}}
        self.last_result: dict[str, Any] = {}


if __name__ == "__main__":
    main()
