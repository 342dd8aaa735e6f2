"""What a trial costs beside its training, in CPU seconds.

    start      from the start of a trial's process to the end of its first epoch, part by part, and a second epoch
    driver     for each report, in the process that drives a run: all of it, and what of it is this project's own
    test       evaluating the test split at every epoch, and where its figures are used (`test_every`)

CPU seconds depend on the processor, and on what else runs on it. Writes start.csv, driver.csv and test.csv to
experiments/results/trial_cost.

    python experiments/trial_cost.py                # some minutes
    python experiments/trial_cost.py --smoke-test
"""

from __future__ import annotations

import argparse
import functools
import math
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from provenance import provenance
from ray import tune

from tune_stn.methods import get_method
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.run import Run, execute
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer
from tune_stn.tuning.budget import BudgetStopper
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recording.recorder import Recorder
from tune_stn.tuning.trainable import STNTrainable

PARTS = ("process", "make_task", "data", "trainer", "epoch_1", "epoch_2")
STARTS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("digits-mlp", "fixed"): {},
    ("digits-mlp", "auto"): {"warmup_epochs": 0},
    ("fashion-mnist-mlp", "fixed"): {"train_images": 2500, "valid_images": 2500},
    ("text-lstm", "fixed"): {},
}
# What Tune calls of this project on the driver.
HOOKS = {
    Recorder: ("on_step_begin", "on_trial_start", "on_trial_result", "on_checkpoint", "on_trial_complete", "get_state"),
    BudgetStopper: ("__call__", "stop_all"),
}
RUNS = [("fixed", 1, 100), ("random", 50, 6)]  # method, trials and epochs of a run whose driver is watched
TESTED: Mapping[str, Mapping[str, Any]] = {
    "digits-mlp": {},
    "fashion-mnist-mlp": {"train_images": 2500, "valid_images": 2500, "epochs": 30},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--repetitions", type=int, default=3, help="of each start")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "trial_cost")
    arguments = parser.parse_args()
    starts, tests, runs = dict(STARTS), dict(TESTED), RUNS
    if arguments.smoke_test:
        arguments.repetitions, runs = 1, [("fixed", 1, 3)]
        starts = {("digits-mlp", "fixed"): {}}
        tests = {"digits-mlp": {"epochs": 8}}
    arguments.results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    made = {"test": pd.DataFrame([test_split(*one) for one in tests.items()])}
    with Cluster().session():
        started = [start(*key, settings) for key, settings in starts.items() for _ in range(arguments.repetitions)]
        of_starts = pd.DataFrame(started).groupby(["task", "algorithm"], sort=False)
        made["start"] = of_starts.median().assign(repetitions=arguments.repetitions).reset_index()
        made["driver"] = pd.DataFrame([driver(*one) for one in runs])
    for name, table in made.items():
        print(f"\n{name}\n{table.to_string(index=False, float_format='%.4f')}")
        table.assign(**provenance("ray")).to_csv(arguments.results / f"{name}.csv", index=False)


# The start of a trial ---------------------------------------------------------------------------------------------


class Measured(STNTrainable):
    """A trial that says what CPU time its process had spent at the end of each part."""

    def setup(self, config: dict[str, Any], task: Any = None) -> None:
        torch.set_num_threads(1)
        self.spent = {"process": cpu_seconds()}
        settings = {key: value for key, value in config.items() if key not in ("task", "algorithm", "seed")}
        made = get_task(config["task"], **settings)
        self.spent["make_task"] = cpu_seconds()
        splits = made.data(config["seed"])
        self.spent["data"] = cpu_seconds()
        self._data = ((config["task"], config["seed"], settings), splits)  # which the set-up takes over
        super().setup(config, task)
        self.spent["trainer"] = cpu_seconds()

    def step(self) -> dict[str, Any]:
        report = super().step()
        self.spent[f"epoch_{report['epoch']}"] = cpu_seconds()
        return {**report, "spent": self.spent}


def cpu_seconds() -> float:
    """Of this process, since it began or was forked."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def start(task: str, algorithm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """CPU seconds of each part of one trial's start, in a process of its own."""
    config = {"task": task, "algorithm": algorithm, "seed": 0, **settings}
    with tempfile.TemporaryDirectory() as folder:
        analysis = tune.run(Measured, config=config, stop={"epoch": 2}, storage_path=folder, verbose=0)
        spent = analysis.trials[0].last_result["spent"]
    parts = {part: spent[part] - before for part, before in zip(PARTS, (0.0, *map(spent.get, PARTS)), strict=False)}
    return {"task": task, "algorithm": algorithm, **parts, "until_epoch_1": spent["trainer"]}


# The driver --------------------------------------------------------------------------------------------------------


def driver(method: str, trials: int, epochs: int) -> dict[str, Any]:
    """CPU milliseconds of a report of a method on the digits, from the first report to the last."""
    spent = dict.fromkeys(("recorder", "stopper"), 0.0)
    calls: dict[str, int] = {}

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **named)
            finally:
                spent[part] += time.thread_time() - began
                calls[function.__name__] = calls.get(function.__name__, 0) + 1

        return call

    marks: list[dict[str, float]] = []

    def on_report(report: Mapping[str, Any], cost_total: float) -> None:
        marks.append({**spent, "thread": time.thread_time(), "process": time.process_time()})

    before = {(kind, name): getattr(kind, name) for kind, names in HOOKS.items() for name in names}
    for (kind, name), function in before.items():
        setattr(kind, name, timed(function, "recorder" if kind is Recorder else "stopper"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(
                task=get_task("digits-mlp", epochs=epochs),
                config={"task": "digits-mlp", "epochs": epochs},
                method=get_method(method),
                seed=0,
                budget=math.inf,
                trials=trials,
                folder=Path(folder) / "state" / f"{method}-seed0",
            )
            execute(run, Cluster(), on_report)
    finally:
        for (kind, name), function in before.items():
            setattr(kind, name, function)
    each = {part: 1000 * (marks[-1][part] - marks[0][part]) / (len(marks) - 1) for part in marks[0]}
    return {
        "method": method,
        "trials": trials,
        "reports": len(marks),
        "ours_ms": each["recorder"] + each["stopper"],
        "recorder_ms": each["recorder"],
        "stopper_ms": each["stopper"],
        "main_thread_ms": each["thread"],
        "process_ms": each["process"],
        "saves_of_tune": calls.get("get_state", 0),
    }


# The test split ----------------------------------------------------------------------------------------------------


def test_split(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """CPU seconds of the same run of `fixed`, with the test split at every epoch and where its figures are used."""
    row: dict[str, Any] = {"task": name}
    runs = []
    for every, side in ((1, "always"), (0, "where_used")):
        task = get_task(name, test_every=every, **settings)
        trainer = Trainer(task, algorithm="fixed")
        began = time.process_time()
        reports = pd.DataFrame([trainer.run_epoch() for _ in range(task.training.epochs)])
        row |= {"epochs": len(reports), f"{side}_s": time.process_time() - began}
        row[f"{side}_evaluations"] = int(reports["test_loss"].notna().sum())
        runs.append((task, trainer, reports))
    check(runs)
    return row | {"share_saved": 1 - row["where_used_s"] / row["always_s"]}


def check(runs: list[tuple[Task, Trainer, pd.DataFrame]]) -> None:
    """Both sides have trained the same, and their tables of the best so far are equal."""
    tables = []
    for task, _, reports in runs:
        named = reports.assign(task=task.name, method="fixed", seed=0, trial_id="0", wall_time_s=0.0)
        tables.append(best_so_far(named.assign(cost_total=reports["cost"], report_index=range(len(reports)))))
    states = [trainer.model.state_dict() for _, trainer, _ in runs]
    if not tables[0].equals(tables[1]) or not all(torch.equal(states[0][name], states[1][name]) for name in states[0]):
        raise SystemExit(f"the sides are not the same:\n{tables[0].to_string()}\n{tables[1].to_string()}")


if __name__ == "__main__":
    main()
