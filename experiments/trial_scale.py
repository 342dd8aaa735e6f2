"""What a run of very many short trials costs its driver: 10,000 trials of 20 reports, none of which trains.

    tune       a random search through `execute`, on Ray Tune: all is real but the trial, one process that makes its
               reports up
    callbacks  what of the driver is this project's own, called as Tune calls it, without Tune; in the place of Tune's
               scheduler, that of methods whose trials wait for a slot
    tables     from the journal to the tables, the page of the report and exported files

The first two run where TMPDIR says: on a disk, a report is written through to it, which is waited for and costs some
CPU as well. They say CPU milliseconds of a report in each tenth of the run, so that growth is seen, and the most memory
that the process had until then. Writes tune.csv, callbacks.csv and tables.csv to experiments/results/trial_scale.

    python experiments/trial_scale.py                # a quarter of an hour, of which ten minutes are Tune's
    python experiments/trial_scale.py --smoke-test
    TMPDIR=/dev/shm python experiments/trial_scale.py tune --trials 1000
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from export_scale import first_report, measure, peak_mb
from provenance import provenance

from tune_stn.methods import get_method
from tune_stn.study import run as study_run
from tune_stn.study.description import describe
from tune_stn.study.report import write_report
from tune_stn.study.results import load_results
from tune_stn.study.run import Run, execute
from tune_stn.tasks import get_task
from tune_stn.tuning.budget import BudgetStopper
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recording.directory import write_study
from tune_stn.tuning.recording.recorder import Recorder
from tune_stn.tuning.slots import InSlots
from tune_stn.tuning.trainable import STNTrainable

TRIALS, REPORTS = 10_000, 20
PARTS = 10  # of a run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tune", "callbacks", "tables"), nargs="*", help="default all")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "trial_scale")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path, int], pd.DataFrame]] = {"tune": on_tune, "callbacks": callbacks, "tables": tables}
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name in arguments.part or parts:
        trials = 10 if arguments.smoke_test else arguments.trials
        with tempfile.TemporaryDirectory() as folder:
            table = parts[name](Path(folder), trials).assign(trials=trials, reports=trials * REPORTS)
        print(f"\n{name}\n{table.to_string(index=False, float_format='%.3f')}", flush=True)
        table.assign(**provenance("ray")).to_csv(arguments.results / f"{name}.csv", index=False)


# On Tune ------------------------------------------------------------------------------------------------------------


class Untrained(STNTrainable):
    """A trial that does nothing but report."""

    def setup(self, config: dict[str, Any], task: Any = None) -> None:
        self.epoch = 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        done = self.epoch == REPORTS
        numbers = {"epoch": self.epoch, "step": self.epoch, "cost": float(self.epoch)}
        return {**first_report(), **numbers, "status": "finished" if done else "running", "done": done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "state").touch()

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing is restored."""


def on_tune(folder: Path, trials: int) -> pd.DataFrame:
    """A row for each tenth of a run of random search."""
    task = get_task("ridge", epochs=REPORTS)
    run = Run(
        task=task,
        config={"task": "ridge", "epochs": REPORTS},
        method=get_method("random"),
        seed=0,
        budget=math.inf,
        trials=trials,
        folder=folder / "state" / "random-seed0",
    )
    spent = Spent(trials * REPORTS)
    study_run.STNTrainable = Untrained  # type: ignore[misc]
    with Cluster(max_concurrent=1).session():
        execute(run, Cluster(), lambda report, total: spent.note())
    study_run.STNTrainable = STNTrainable  # type: ignore[misc]
    return pd.DataFrame(spent.rows)


# Without Tune -------------------------------------------------------------------------------------------------------


def callbacks(folder: Path, trials: int) -> pd.DataFrame:
    """A row for each tenth of a run of which only this project's callbacks, stopper and slots are called."""
    recorder = Recorder(folder / "state", hps=["penalty"], write_every_s=None, strict=True)
    stopper = BudgetStopper(recorder, math.inf, save_last=True)
    known: list[Any] = []
    controller = SimpleNamespace(get_trials=lambda: known, get_live_trials=lambda: known[-1:])
    scheduler = InSlots(SimpleNamespace(choose_trial_to_run=lambda controller: None), slots=1)  # type: ignore[arg-type]
    spent = Spent(trials * REPORTS)
    for number in range(trials):
        name = f"{number:05x}_{number:05d}"
        config = {"hp": {"penalty": 1.0 + number}}
        trial = SimpleNamespace(
            trial_id=name, config=config, checkpoint=None, last_result={}, path=None, status="RUNNING"
        )
        known.append(trial)
        recorder.on_trial_start(0, known, trial)
        for result in results(trial):
            recorder.on_step_begin(0, known)
            scheduler.choose_trial_to_run(controller)
            stopper(name, result)
            recorder.on_trial_result(0, known, trial, result)
            stopper.stop_all()
            trial.last_result = result
            spent.note()
        trial.status = "TERMINATED"
        recorder.on_trial_complete(0, known, trial)
    return pd.DataFrame(spent.rows)


def results(trial: Any) -> Iterator[Mapping[str, Any]]:
    """As Tune passes them on."""
    for epoch in range(1, REPORTS + 1):
        own = {"epoch": epoch, "step": epoch, "cost": float(epoch), "hp/penalty": trial.config["hp"]["penalty"]}
        of_tune = {"training_iteration": epoch, "time_this_iter_s": 0.1, "config": trial.config}
        yield {**first_report(), **own, **of_tune, "status": "finished" if epoch == REPORTS else "running"}


class Spent:
    """CPU time and memory of this process in each tenth of a run's reports."""

    def __init__(self, reports: int) -> None:
        self.reports = reports
        self.noted = 0
        self.rows: list[dict[str, float]] = []
        self._before = self._now()

    def note(self) -> None:
        """To be called after each report."""
        self.noted += 1
        if self.noted % (self.reports // PARTS) == 0:
            now, count = self._now(), self.reports // PARTS
            spent = {f"{name}_ms": 1000 * (now[name] - self._before[name]) / count for name in now}
            self.rows.append({"until_report": self.noted, **spent, "peak_mb": peak_mb()})
            print(self.rows[-1], flush=True)
            self._before = now

    def _now(self) -> dict[str, float]:
        return {"main_thread": time.thread_time(), "process": time.process_time(), "clock": time.monotonic()}


# Tables -------------------------------------------------------------------------------------------------------------


def tables(folder: Path, trials: int) -> pd.DataFrame:
    """A row for each stage."""
    stages = measure(folder, trials, REPORTS)
    study = describe(get_task("ridge"), "ridge", [get_method("random")], [0], math.inf, trials, {})
    write_study(folder, study | {key: [] for key in ("remarks", "missing", "failures", "restarts", "clocks")})
    results = load_results(folder)
    began, cpu = time.perf_counter(), time.process_time()
    write_report(results)
    page = {"stage": "report", "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return pd.concat([stages, pd.DataFrame([page | {"peak_mb": peak_mb()}])], ignore_index=True)


if __name__ == "__main__":
    main()
