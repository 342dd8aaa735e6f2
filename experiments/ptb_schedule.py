"""Whether STN's schedule of a dropout rate is better than any fixed rate: table 1 of the STN paper.

The output dropout of an LSTM on Penn Treebank is studied alone; the other six hyperparameters are held at .05 (arXiv
1903.03088, table 1). Rows: the rate of a grid that is best on the validation split (over the same seeds, so its
validation loss flatters it; the paper's is .68); that rate with Gaussian noise (standard deviation .05) or with a
sinusoid (amplitude .1, a period of 1200 batches of 331 an epoch) at every step; STN's last rate, fixed; STN from .05;
and STN's schedule, replayed on a plain network at every step. Every run is a trial of the comparison machinery, of one
training run's length.

Writes to experiments/results/ptb_schedule/<task>: runs.csv, table.csv (means with 95 % intervals and, paired by seed,
differences to the best fixed rate; perplexities are exponentials of each seed's loss), STN's schedules and a plot.

    python experiments/ptb_schedule.py --data-dir FOLDER               # 30,000 tokens; about half an hour on 2 cores
    python experiments/ptb_schedule.py --data-dir FOLDER --size full --gpus-per-trial 0.5   # the paper's
    python experiments/ptb_schedule.py --task text-lstm --smoke-test   # no data needed

Goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pages import RESULTS, markdown, paired
from ptb_tuning import PTB_SMALL, SEEDS, SMALL, SMOKE
from ray import tune
from ray.tune.search import BasicVariantGenerator

from tune_stn.methods import get_method
from tune_stn.methods.method import Context, Method, Plan, start_point
from tune_stn.study.compare import run_study
from tune_stn.study.results import Results
from tune_stn.study.statistics import mean_interval, paired_difference
from tune_stn.study.summary import with_interval
from tune_stn.tasks import Task, get_task
from tune_stn.training.schedule import Schedule
from tune_stn.tuning.cluster import Cluster

STUDIED = "dropout_output"
NOISE_STD, AMPLITUDE, PERIOD_EPOCHS = 0.05, 0.1, 1200 / 331
# Rates of the grid, seeds, and settings of the task.
GRID = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)
SIZES: dict[str, tuple[Sequence[float], int, dict[str, Any]]] = {
    "cpu": (GRID, 3, {**SMALL, "epochs": 30}),
    "full": ((*GRID, 0.68), 3, {}),
    "smoke": ((0.05, 0.5), 2, {**SMOKE, "warmup_epochs": 0}),
}
FIXED, GAUSSIAN, SINUSOID = "fixed, best of the grid", "with Gaussian noise", "with sinusoid noise"
FINAL, STN, REPLAYED = "fixed at STN's last rate", "STN", "STN's schedule, replayed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("ptb-lstm", "text-lstm"), default="ptb-lstm")
    parser.add_argument("--data-dir", help="folder of Penn Treebank; default: $TUNE_STN_DATA/ptb")
    parser.add_argument("--size", choices=("cpu", "full"), default="cpu")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--gpus-per-trial", type=float, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ptb_schedule"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "ptb_schedule")
    arguments = parser.parse_args()
    size = "smoke" if arguments.smoke_test else arguments.size
    rates, count, settings = SIZES[size]
    seeds = SEEDS[: arguments.seeds or count]
    if arguments.task == "ptb-lstm":
        settings = {**settings, **(PTB_SMALL if size == "cpu" else {})}
        if arguments.data_dir:
            settings["data_dir"] = arguments.data_dir
    task = get_task(arguments.task, **settings).tuning_only(STUDIED)
    name = f"{arguments.task}-{size}"

    def run(part: str, methods: list[Method], trials: int) -> Results:
        return run_study(
            task,
            methods,
            seeds=seeds,
            budget=math.inf,
            trials=trials,
            out=arguments.out / name / part,
            resume=True,
            settings={},
            # One trial at a time keeps to one process, whose start takes longer than a trial of a smoke test.
            cluster=Cluster(
                gpus_per_trial=arguments.gpus_per_trial, max_concurrent=1 if arguments.smoke_test else None
            ),
            say=print,
        )

    grid = run("grid", [constants("grid", lambda seed: rates)], len(rates))
    fixed = trials_of(grid)
    best = float(fixed.groupby("rate")["best_val_loss"].mean().idxmin())
    stn = run("stn", [get_method("stn")], 1)
    schedules = {
        int(seed): Schedule.from_frame(rows) for seed, rows in stn.schedule.groupby("seed") if int(seed) in seeds
    }
    last = {seed: round(schedule.at(int(schedule.times[-1]))[STUDIED], 4) for seed, schedule in schedules.items()}
    followed = {
        FINAL: lambda seed: Schedule.constant({STUDIED: last[seed]}),
        GAUSSIAN: lambda seed: around(
            best, task, lambda step: NOISE_STD * np.random.default_rng(seed).normal(size=len(step))
        ),
        SINUSOID: lambda seed: around(best, task, lambda step: AMPLITUDE * np.sin(2 * np.pi * step / period(task))),
        REPLAYED: lambda seed: schedules[seed],
    }

    def files(seed: int) -> list[str]:
        paths = [(arguments.out / name / f"schedule-{seed}-{row}.parquet").resolve() for row in range(len(followed))]
        for path, schedule in zip(paths, followed.values(), strict=True):
            schedule(seed).to_parquet(path)
        return [str(path) for path in paths]

    others = run("schedules", [replays(files)], len(followed))

    runs = pd.concat(
        [
            fixed[fixed["rate"] == best].assign(row=FIXED),
            trials_of(stn).assign(row=STN),
            # Tune numbers the trials of a run in the order of their schedules.
            *(rows.assign(row=list(followed)) for _, rows in trials_of(others).groupby("seed")),
        ]
    )
    folder = arguments.results / name
    folder.mkdir(parents=True, exist_ok=True)
    fixed.drop(columns="method").to_csv(folder / "grid.csv", index=False)
    runs.drop(columns="method").to_csv(folder / "runs.csv", index=False)
    written = table(runs)
    written.to_csv(folder / "table.csv", index=False)
    stn.schedule.to_parquet(folder / "schedules.parquet", index=False, compression="zstd")
    plot(schedules, best).savefig(folder / "schedules.png", dpi=90)
    study = {key: stn.study[key] for key in ("versions", "machine", "git_commit", "command")} | {"settings": settings}
    if data_dir := settings.pop("data_dir", None):  # a folder of this machine
        study["command"] = study["command"].replace(data_dir, "FOLDER")
    (folder / "study.json").write_text(json.dumps(study, indent=1) + "\n")
    print(fixed.groupby("rate")[["best_val_loss", "test_loss"]].mean().to_string())
    print(written.to_string(index=False, float_format="%.4f"))


# Methods of plain trials -----------------------------------------------------------------------------------------


def constants(name: str, rates: Callable[[int], Sequence[float]]) -> Method:
    """Plain trials at fixed rates, which may be others at each seed."""

    def plan(context: Context) -> Plan:
        points = [{"hp": {STUDIED: rate}} for rate in rates(context.seed)]
        search = BasicVariantGenerator(points_to_evaluate=points, max_concurrent=context.slots)
        return Plan(search_alg=search, samples=len(points), hp=context.task.space.to_tune())

    return Method(name, "plain trials at fixed rates", "fixed", plan)


def replays(files: Callable[[int], Sequence[str]]) -> Method:
    """Plain trials that follow the schedule of a file each, which may be others at each seed."""

    def plan(context: Context) -> Plan:
        found = files(context.seed)
        points = [{"schedule": file} for file in found]
        return Plan(
            search_alg=BasicVariantGenerator(points_to_evaluate=points, max_concurrent=context.slots),
            samples=len(points),
            hp=start_point(context.task),
            config={"schedule": tune.choice(found)},
        )

    return Method("replays", "plain trials that follow schedules", "fixed", plan)


def around(rate: float, task: Task, disturbance: Callable[[Any], Any]) -> Schedule:
    """A rate with a disturbance that is a function of the training steps, inside the domain."""
    steps = np.arange(task.training.epochs * batches(task))
    domain = task.space[STUDIED]
    values = [domain.nearest(rate + shift) for shift in disturbance(steps).tolist()]
    return Schedule((STUDIED,), steps, np.array(values)[:, None])


def period(task: Task) -> int:
    """Of the sinusoid, in steps: as many epochs as the paper's."""
    return round(PERIOD_EPOCHS * batches(task))


def batches(task: Task) -> int:
    """Of an epoch."""
    return task.data(0).train.steps(task.training.batch_size)


# What came of it ---------------------------------------------------------------------------------------------------


def trials_of(results: Results) -> pd.DataFrame:
    """A row for each trial: its rate at the end, and its losses at its epoch of the least validation loss."""
    rows = []
    for (method, seed, _), reports in results.reports.groupby(["method", "seed", "trial_id"]):
        best = reports.loc[reports["val_loss"].idxmin()]
        rows.append(
            {
                "method": method,
                "seed": seed,
                "rate": round(float(reports[f"hp/{STUDIED}"].iloc[-1]), 4),
                "best_epoch": best["epoch"],
                "best_val_loss": best["val_loss"],
                "test_loss": best["test_loss"],
                "cost": reports["cost"].max(),
                "device_time_s": reports["device_time_s"].max(),
            }
        )
    return pd.DataFrame(rows)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """Means with 95 % intervals, and differences to the best fixed rate."""
    fixed = runs[runs["row"] == FIXED].set_index("seed")
    rows = []
    for label in (FIXED, GAUSSIAN, SINUSOID, FINAL, STN, REPLAYED):
        part = runs[runs["row"] == label].set_index("seed").loc[fixed.index]
        row: dict[str, Any] = {
            "row": label,
            "rate": part["rate"].mean(),
            "seeds": len(part),
            "cost": part["cost"].mean(),
        }
        for split, column in (("val", "best_val_loss"), ("test", "test_loss")):
            for figure, values in (("loss", part[column]), ("perplexity", np.exp(part[column]))):
                mean = mean_interval(values)
                row |= {f"{split}_{figure}": mean.mean}
                row |= {f"{split}_{figure}_low": mean.low, f"{split}_{figure}_high": mean.high}
            if label != FIXED:
                difference = paired_difference(part[column], fixed[column])
                row |= {f"{split}_minus_fixed": difference.mean, f"{split}_minus_fixed_p": difference.p_value}
                row |= {f"{split}_minus_fixed_low": difference.low, f"{split}_minus_fixed_high": difference.high}
        rows.append(row)
    return pd.DataFrame(rows)


def plot(schedules: dict[int, Schedule], best: float) -> Figure:
    """STN's rate over the training steps, one line for each seed, and the best fixed rate."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for seed, schedule in schedules.items():
        axes.plot(schedule.times, schedule.values[:, 0], lw=1.6, label=f"STN, seed {seed}")
    axes.axhline(best, color="#7F7F7F", ls="--", lw=1.2, label="best fixed rate")
    axes.set(xlabel="training step (batches)", ylabel="output dropout", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def page_table() -> str:
    """The layout of table 1 of the STN paper."""
    rows = []
    for row in pd.read_csv(RESULTS / "ptb_schedule" / "ptb-lstm-cpu" / "table.csv").to_dict("records"):
        cells = [row["row"], f"{row['rate']:.2f}", f"{row['cost']:.0f}"]
        for column in ("val_perplexity", "test_perplexity"):
            cells.append(with_interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high"))))
        for split in ("val", "test"):
            difference, low, high, p = (row[f"{split}_minus_fixed{end}"] for end in ("", "_low", "_high", "_p"))
            cells.append(paired({"mean": difference, "low": low, "high": high, "p_value": p}))
        rows.append(cells)
    header = ["output dropout", "its last rate", "cost", "val. perplexity [95 %]", "test perplexity [95 %]"]
    return markdown(
        [*header, "val. loss minus the fixed one's, paired [95 %]", "test loss minus the fixed one's, paired [95 %]"],
        rows,
    )


TABLES: Mapping[str, Callable[[], str]] = {"ptb-schedule": page_table}


if __name__ == "__main__":
    main()
