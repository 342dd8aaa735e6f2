"""Whether a schedule is better than its values, and whether it is the schedule that helps: STN's, on a plain network.

The table 1 of the STN paper (arXiv 1903.03088) with Fashion-MNIST (CNN) in place of its LSTM: one dropout rate is
studied, that before the last layer; all others and cutout stay at the task's start values. Rows: the rate of a grid
that is best on the validation split (over the same seeds, so its validation loss flatters it); that rate with Gaussian
noise (standard deviation .05) or with a sinusoid (amplitude .1) at every step; STN's last value, fixed; STN; and STN's
schedule, replayed on a plain network at every step. The paper's sinusoid has a period of 1200 batches, 3.6 epochs of
its 331 batches; here it has as many epochs.

Losses are those of the epoch of the least validation loss. Every run is appended to experiments/results/replay/runs.csv
when it ends, and a run that is there is not run again; schedule-*.parquet hold STN's schedules; summary.csv has means
with 95 % intervals and, paired by seed, the differences to the best fixed rate.

    python experiments/replay.py --size cpu       # 2,000 images, 40 epochs, five seeds; about 25 minutes on 2 cores
    python experiments/replay.py --smoke-test
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pages import RESULTS, markdown
from torch import Tensor, nn

from tune_stn.data.augment import Augmentation
from tune_stn.data.batches import steps_per_epoch
from tune_stn.space import SearchSpace
from tune_stn.space.sample import Sample
from tune_stn.study.statistics import mean_interval, paired_difference
from tune_stn.study.summary import with_interval
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer
from tune_stn.training.schedule import Schedule

STUDIED = "dropout_fc"
GRID = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)
NOISE_STD, AMPLITUDE, PERIOD_EPOCHS = 0.05, 0.1, 1200 / 331
# A run here has a fortieth of the paper's steps: hyper-steps are twice as often as in either paper, and larger, or none
# of the schedules would get anywhere.
HYPER = {"train_steps": 2, "hyper_lr": 0.03}
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"train_images": 2000, "valid_images": 2000, "test_images": 2000, "batch_size": 100, "epochs": 40},
    "smoke": {"train_images": 60, "valid_images": 60, "test_images": 60, "batch_size": 20, "epochs": 2, "hidden": 8}
    | {"warmup_epochs": 0},
}
FIXED, GAUSSIAN, SINUSOID = "fixed, best of the grid", "with Gaussian noise", "with sinusoid noise"
FINAL, STN, REPLAYED = "fixed at STN's last value", "STN", "STN's schedule, replayed"
KEY = ["size", "row", "value", "seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["cpu"], default="cpu")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "replay")
    arguments = parser.parse_args()
    size = "smoke" if arguments.smoke_test else arguments.size
    results, seeds = arguments.results, range(arguments.seeds)
    results.mkdir(parents=True, exist_ok=True)
    start = one_dropout(size).start[STUDIED]

    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        first = [
            (size, row, value, seed) for seed in seeds for row, value in [(STN, start), *((FIXED, v) for v in GRID)]
        ]
        runs = run_all(pool, results, first)
        grid = runs[(runs["row"] == FIXED) & runs["seed"].isin(seeds) & (runs["size"] == size)]
        best = float(grid.groupby("value")["best_val_loss"].mean().idxmin())
        second = [
            (size, row, value, seed)
            for seed in seeds
            for row, value in [
                (GAUSSIAN, best),
                (SINUSOID, best),
                (FINAL, last_value(results, size, seed)),
                (REPLAYED, start),
            ]
        ]
        runs = run_all(pool, results, second)

    mine = pd.DataFrame([*first, *second], columns=KEY).merge(runs, on=KEY)
    summary = summarise(mine[(mine["row"] != FIXED) | (mine["value"] == best)])
    summary.to_csv(results / f"summary{'-smoke' if arguments.smoke_test else ''}.csv", index=False)
    print(mine[mine["row"] == FIXED].groupby("value")[["best_val_loss", "test_loss_at_best"]].mean().to_string())
    print(summary.to_string(index=False, float_format="%.4f"))


def one_dropout(size: str) -> Task:
    """Fashion-MNIST (CNN) with one dropout rate as its hyperparameter, and the others held at their start values."""
    whole = get_task("fashion-mnist-cnn", **HYPER, **SIZES[size])
    held = {name: value for name, value in whole.start.items() if name != STUDIED}

    def model() -> nn.Module:
        network = whole.model()
        for path, name in whole.dropout.items():
            if name in held:
                network.get_submodule(path).p = held[name]
        return network

    return replace(
        whole,
        model=model,
        space=SearchSpace({STUDIED: whole.space[STUDIED]}),
        start={STUDIED: whole.start[STUDIED]},
        dropout={path: name for path, name in whole.dropout.items() if name == STUDIED},
        augmentations=tuple(Held(augmentation, held) for augmentation in whole.augmentations),
    )


@dataclass(frozen=True)
class Held:
    """An augmentation at constant values."""

    augmentation: Augmentation
    values: Mapping[str, float]
    names: tuple[str, ...] = ()

    def __call__(self, inputs: Tensor, sample: Sample) -> Tensor:
        constants = {name: torch.full((1,), value, device=inputs.device) for name, value in self.values.items()}
        return self.augmentation(inputs, Sample(constants))


def run_all(pool: ProcessPoolExecutor, results: Path, wanted: Iterable[tuple[Any, ...]]) -> pd.DataFrame:
    """Run what is not in runs.csv yet; all the runs there."""
    file = results / "runs.csv"
    done = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEY)
    finished = set(done[KEY].itertuples(index=False, name=None))
    for future in as_completed(pool.submit(train, results, *key) for key in wanted if key not in finished):
        row = pd.DataFrame([future.result()])
        row.to_csv(file, mode="a", header=not file.exists(), index=False)
        print(row[[*KEY, "best_val_loss", "test_loss_at_best", "wall_time_s"]].to_string(index=False, header=False))
    return pd.read_csv(file)


def train(results: Path, size: str, row: str, value: float, seed: int) -> dict[str, Any]:
    """One run: losses at the best validation epoch, cost and time."""
    torch.set_num_threads(1)
    task = one_dropout(size)
    schedules: dict[str, Callable[[], Schedule]] = {
        REPLAYED: lambda: Schedule.from_parquet(schedule_file(results, size, seed)),
        GAUSSIAN: lambda: around(
            value, task, lambda step: NOISE_STD * np.random.default_rng(seed).normal(size=len(step))
        ),
        SINUSOID: lambda: around(value, task, lambda step: AMPLITUDE * np.sin(2 * np.pi * step / period(task))),
    }
    trainer = Trainer(
        task,
        algorithm="stn" if row == STN else "fixed",
        hp={STUDIED: value},
        schedule=schedules[row]() if row in schedules else None,
        seed=seed,
    )
    began = time.perf_counter()
    reports = [trainer.run_epoch() for _ in range(task.training.epochs)]
    best = min(reports, key=lambda report: report["val_loss"])
    if row == STN:
        table = pd.DataFrame(trainer.schedule.columns(task.space, tuned=True))
        Schedule.from_frame(table).to_parquet(schedule_file(results, size, seed))
    return dict(zip(KEY, (size, row, value, seed), strict=True)) | {
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "test_loss_at_best": best["test_loss"],
        "last_val_loss": reports[-1]["val_loss"],
        "last_value": reports[-1][f"hp/{STUDIED}"],
        "cost": reports[-1]["cost"],
        "device_time_s": reports[-1]["device_time_s"],
        "wall_time_s": time.perf_counter() - began,
        "torch": torch.__version__,
    }


def around(value: float, task: Task, disturbance: Callable[[Any], Any]) -> Schedule:
    """A value with a disturbance that is a function of the training steps, inside the domain."""
    steps = np.arange(task.training.epochs * batches(task))
    domain = task.space[STUDIED]
    values = [domain.nearest(value + shift) for shift in disturbance(steps).tolist()]
    return Schedule((STUDIED,), steps, np.array(values)[:, None])


def period(task: Task) -> int:
    """Of the sinusoid, in steps."""
    return round(PERIOD_EPOCHS * batches(task))


def batches(task: Task) -> int:
    """Of an epoch."""
    return steps_per_epoch(len(task.data(0).train), task.training.batch_size)


def schedule_file(results: Path, size: str, seed: int) -> Path:
    return results / f"schedule-{size}-seed{seed}.parquet"


def last_value(results: Path, size: str, seed: int) -> float:
    schedule = Schedule.from_parquet(schedule_file(results, size, seed))
    return round(schedule.at(int(schedule.times[-1]))[STUDIED], 4)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each row of the table: means with 95 % intervals, and differences to the best fixed rate."""
    fixed = runs[runs["row"] == FIXED].set_index("seed")
    rows = []
    for name in (FIXED, GAUSSIAN, SINUSOID, FINAL, STN, REPLAYED):
        part = runs[runs["row"] == name].set_index("seed").loc[fixed.index]
        row = {"row": name, "value": part["value"].mean(), "seeds": len(part), "cost": part["cost"].mean()}
        for column in ("best_val_loss", "test_loss_at_best"):
            mean = mean_interval(part[column])
            row |= {column: mean.mean, f"{column}_low": mean.low, f"{column}_high": mean.high}
            if name != FIXED:
                difference = paired_difference(part[column], fixed[column])
                row |= {f"{column}_minus_fixed": difference.mean, f"{column}_minus_fixed_low": difference.low}
                row |= {f"{column}_minus_fixed_high": difference.high, f"{column}_p": difference.p_value}
        rows.append(row)
    return pd.DataFrame(rows)


def page_table() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "replay" / "summary.csv").to_dict("records"):
        cells = [row["row"], f"{row['cost']:.0f}"]
        for column in ("best_val_loss", "test_loss_at_best"):
            cells.append(with_interval(row[column], row[f"{column}_low"], row[f"{column}_high"]))
        for column in ("best_val_loss", "test_loss_at_best"):
            difference, low, high = (row[f"{column}_minus_fixed{end}"] for end in ("", "_low", "_high"))
            cells.append("" if pd.isna(difference) else f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]")
        rows.append(cells)
    header = ["dropout rate", "cost", "best val. loss [95 %]", "its test loss [95 %]"]
    return markdown(
        [*header, "val. loss minus the fixed one's, paired", "test loss minus the fixed one's, paired"], rows
    )


TABLES: Mapping[str, Callable[[], str]] = {"replay": page_table}


if __name__ == "__main__":
    main()
