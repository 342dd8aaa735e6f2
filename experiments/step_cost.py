"""What a self-tuning step costs, in plain training steps.

Plain, STN and Delta-STN training steps (a Delta-STN cycle: base and response step; an STN hyper-step apart) on the
Fashion-MNIST CNN and MLP, with full, rank-8 and gate-only responses. All of them take turns in one process, on the same
batch, and every ratio is of two neighbours in time: on a shared machine nothing else means anything. Prints median and
quartiles of the ratios beside the ratio of floating-point operations, and writes them to
experiments/results/step_cost/.

    python experiments/step_cost.py              # the figures of the README; about four minutes
    python experiments/step_cost.py --smoke-test
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from tune_stn.data.splits import Split
from tune_stn.tasks import get_task
from tune_stn.training import Trainer

SIZES = ("full", 8, "gate")
# Small splits: only their first batches are used. No warm-up of the task is run, so that hyper-steps count too.
SPLITS = {"train_images": 256, "valid_images": 256, "test_images": 1}
MODELS = {"fashion-mnist-cnn": {"hidden": 256}, "fashion-mnist-mlp": {"hidden": 512}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "step_cost")
    arguments = parser.parse_args()
    rounds = 3 if arguments.smoke_test else arguments.rounds

    tables = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for model, settings in MODELS.items():
            table = measure(model, settings, rounds, arguments.batch_size, arguments.device)
            tables.append(table.assign(model=model, threads=threads))
            print(f"\n{model}, batch {arguments.batch_size}, {threads} thread(s), {rounds} rounds, {arguments.device}")
            print(table.to_string(index=False, float_format="%.2f"))
    together = pd.concat(tables).assign(
        device=torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
        torch=torch.__version__,
        batch_size=arguments.batch_size,
        rounds=rounds,
    )
    arguments.results.mkdir(parents=True, exist_ok=True)
    together.to_csv(arguments.results / f"{arguments.device}.csv", index=False)


def measure(model: str, settings: dict[str, int], rounds: int, batch_size: int, device: str) -> pd.DataFrame:
    """Ratios to the plain step of the same round: median, quartiles, and the ratio of operations."""
    task_settings = {**SPLITS, **settings, "batch_size": batch_size}
    steps: dict[tuple[str, str], Callable[[], object]] = {}
    flops: dict[tuple[str, str], Callable[[], float]] = {}
    for size in SIZES:
        task = get_task(model, **task_settings, response=size)
        for algorithm in ("stn", "delta-stn"):
            trainer = Trainer(task, algorithm=algorithm, device=device)
            train, valid = first_batch(trainer.splits.train, batch_size), first_batch(trainer.splits.valid, batch_size)
            what = "STN step" if algorithm == "stn" else "Delta-STN cycle"
            steps[what, str(size)] = train_step(trainer, train)
            flops[what, str(size)] = step_flops(trainer, steps[what, str(size)])
            if algorithm == "stn":
                steps["hyper-step", str(size)] = hyper_step(trainer, valid)
                flops["hyper-step", str(size)] = step_flops(trainer, steps["hyper-step", str(size)])
    trainer = Trainer(get_task(model, **task_settings), algorithm="fixed", device=device)
    plain = train_step(trainer, first_batch(trainer.splits.train, batch_size))
    plain_flops = step_flops(trainer, plain)()

    operations = {key: count() / plain_flops for key, count in flops.items()}  # also warms every step up
    for step in (plain, *steps.values()):
        seconds(step, device)
    ratios: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            ratios[key].append(seconds(step, device) / seconds(plain, device))
    rows = []
    for (what, size), values in ratios.items():
        series = pd.Series(values)
        low, median, high = series.quantile([0.25, 0.5, 0.75])
        row = {"step": what, "response": size, "over_plain": median, "quartile_1": low, "quartile_3": high}
        rows.append(row | {"operations_over_plain": operations[what, size]})
    return pd.DataFrame(rows).sort_values("step", kind="stable")


def first_batch(split: Split, batch_size: int) -> Split:
    return split.take(torch.arange(batch_size))


def train_step(trainer: Trainer, batch: Split) -> Callable[[], object]:
    trainer.model.train()
    return lambda: trainer.rule.train_step(trainer.learner, batch, trainer.meter)


def hyper_step(trainer: Trainer, batch: Split) -> Callable[[], object]:
    def step() -> None:
        with trainer.meter.step("hyper"):
            trainer.learner.hyper_step(batch)

    return step


def step_flops(trainer: Trainer, step: Callable[[], object]) -> Callable[[], float]:
    """Operations that one call of `step` adds to the trainer's meter."""

    def count() -> float:
        before = trainer.meter.spent_flops
        step()
        return trainer.meter.spent_flops - before

    return count


def seconds(step: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
