"""Time and memory from the journal of a large run to exported files: 1,000 trials of 200 reports, a trivial task.

The journal of a random search on `ridge` is made up: the recorder writes the first report, the others are that line
with other numbers, from eight trials at a time, as the recorder would have appended them. Then, in this process, what a
study does with it: the end of the run, the tables of the study, `load_results`, and `tune-stn export` to Parquet and to
CSV. Writes seconds of each stage, on the clock and of CPU, and the peak of the process's memory up to its end to
experiments/results/export_scale; what the imports take is the memory "before".

    python experiments/export_scale.py              # less than a minute
    python experiments/export_scale.py --smoke-test
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
from pages import RESULTS, markdown

from tune_stn.methods import get_method
from tune_stn.study.collect import write_tables
from tune_stn.study.results import export_results, load_results
from tune_stn.study.run import DONE, SCHEDULE, Run
from tune_stn.tasks import get_task
from tune_stn.training.tables import STUDY_SCHEMA_VERSION
from tune_stn.tuning.recording.recorder import Recorder
from tune_stn.tuning.recording.tables import read_recorded, schedule_rows

AT_A_TIME = 8
GOAL_S, GOAL_MB = 10.0, 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, default=200, help="of each trial")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "export_scale")
    arguments = parser.parse_args()
    trials, reports = (20, 10) if arguments.smoke_test else (arguments.trials, arguments.reports)

    with tempfile.TemporaryDirectory() as folder:
        stages = measure(Path(folder), trials, reports)
    stages = stages.assign(trials=trials, reports=trials * reports, machine=platform.machine(), pyarrow=pa.__version__)
    arguments.results.mkdir(parents=True, exist_ok=True)
    stages.to_csv(arguments.results / "stages.csv", index=False)
    print(stages.to_string(index=False, float_format="%.2f"))
    to_parquet = stages[stages["stage"] != "export csv"]
    total, cpu, peak = to_parquet["seconds"].sum(), to_parquet["cpu_seconds"].sum(), stages["peak_mb"].max()
    print(f"to Parquet {total:.1f} s ({cpu:.1f} s of CPU; goal {GOAL_S:g}), peak {peak:.0f} MB (goal {GOAL_MB:g})")


def measure(folder: Path, trials: int, reports: int) -> pd.DataFrame:
    """A row for each stage: its seconds on the clock and of CPU, and the process's peak memory so far in MB."""
    task = get_task("ridge")
    run = Run(
        task=task,
        config={"task": "ridge"},
        method=get_method("random"),
        seed=0,
        budget=math.inf,
        trials=trials,
        folder=folder / "state" / "random-seed0",
    )
    write_journal(run.folder, trials, reports)
    (run.folder / DONE).write_text(json.dumps({"trials": trials, "cost_total": 0.0, "failures": {}, "hopeless": False}))
    study = {
        "schema_version": STUDY_SCHEMA_VERSION,
        "task": "ridge",
        "methods": ["random"],
        "seeds": [0],
        "missing": [],
    }
    (folder / "study.json").write_text(json.dumps(study))

    rows = [{"stage": "before", "seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": peak_mb()}]

    def timed(stage: str, do: Callable[[], Any]) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        found = do()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        rows.append({"stage": stage, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb()})
        return found

    timed("end of the run", lambda: end_run(run))
    timed("tables", lambda: write_tables(task, [run], folder))
    results = timed("load", lambda: load_results(folder))
    if len(results.reports) != trials * reports or results.schedule["trial_id"].nunique() != trials:
        raise SystemExit("the tables lack reports or trials")
    for format in ("parquet", "csv"):
        timed(f"export {format}", lambda format=format: export_results(results, folder / format, format))
    return pd.DataFrame(rows)


def end_run(run: Run) -> None:
    """What `execute` does when the last trial has ended; these trials have no schedules of their own."""
    schedule_rows(read_recorded(run.folder / "reports.jsonl")).to_parquet(run.folder / SCHEDULE, index=False)


def write_journal(folder: Path, trials: int, reports: int) -> None:
    recorder = Recorder(folder, write_every_s=None)
    trial = SimpleNamespace(
        trial_id="first", config={"hp": {"penalty": 1.0}}, checkpoint=None, last_result={}, path=None
    )
    recorder.on_trial_start(0, [trial], trial)
    recorder.on_trial_result(0, [trial], trial, first_report())
    line = json.loads(recorder.path.read_text())
    with open(recorder.path, "w") as file:
        file.writelines(json.dumps(line | own) + "\n" for own in reported(trials, reports))


def first_report() -> dict[str, Any]:
    """As `STNTrainable` gives it, at the end of the first epoch of a plain trial."""
    return {
        **{"epoch": 1, "step": 1, "cost": 1.0, "cost_increment": 1.0},
        **{"device_time_s": 0.1, "device_time_increment_s": 0.1},
        **{"train_loss": 1.0, "val_loss": 1.0, "test_loss": 1.0, "best_val_loss": 1.0},
        **{"hp/penalty": 1.0, "scale/penalty": 0.0},
        **{"parent_trial_id": "", "segment": "", "status": "running", "reason": "", "training_iteration": 1},
    }


def reported(trials: int, reports: int) -> Iterator[dict[str, Any]]:
    """What differs from line to line, in the order of the reports."""
    draw = random.Random(0)
    total = 0.0
    for first in range(0, trials, AT_A_TIME):
        penalties = {
            f"{number:05x}_{number:05d}": draw.random() for number in range(first, min(first + AT_A_TIME, trials))
        }
        for epoch in range(1, reports + 1):
            for name, penalty in penalties.items():
                total += 1.0
                loss = penalty + 1 / epoch + 0.01 * draw.random()
                yield {
                    **{"trial_id": name, "epoch": epoch, "step": epoch, "cost": float(epoch), "cost_total": total},
                    **{"train_loss": loss, "val_loss": loss, "test_loss": loss, "best_val_loss": loss},
                    **{"hp/penalty": penalty, "wall_time_s": total / 7, "device_time_s": epoch / 11},
                    **{"status": "finished" if epoch == reports else "running"},
                }


def peak_mb() -> float:
    """Of this process since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def page_table() -> str:
    table = pd.read_csv(RESULTS / "export_scale" / "stages.csv")
    rows = [
        [row["stage"], *(f"{row[column]:.1f}" for column in ("seconds", "cpu_seconds")), f"{row['peak_mb']:.0f}"]
        for row in table.to_dict("records")
    ]
    parquet = table[table["stage"] != "export csv"]
    rows.append(["all but CSV", *(f"{parquet[column].sum():.1f}" for column in ("seconds", "cpu_seconds")), ""])
    return markdown(["", "s", "s of CPU", "peak memory so far, MB"], rows)


TABLES: Mapping[str, Callable[[], str]] = {"export-scale": page_table}


if __name__ == "__main__":
    main()
