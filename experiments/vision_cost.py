"""How fast the image networks train, how near that is to what the machine can do, and what data and augmentation take.

For each network plain, STN and Delta-STN training steps take turns in one process, on one batch: images a second, the
ratio to the plain step of the same round, and the share of two floors: floating-point operations over the rate of a
large matrix product, and bytes (weights, gradients and momenta moved once for each use, feature maps kept for backward
written and read once) over the bandwidth of a large copy, both measured here. Then whole epochs on random images of the
task's own number: seconds, and the share of drawing, normalising and augmenting batches. Writes to
experiments/results/vision_cost/<device>-*.csv.

    python experiments/vision_cost.py                    # about 15 minutes on 2 cores
    python experiments/vision_cost.py --device cuda --precision bfloat16 --compile --cuda-graphs
    python experiments/vision_cost.py --smoke-test
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from lstm_cost import machine
from pages import RESULTS, markdown
from step_cost import first_batch, peak_memory, seconds, step_flops, train_step
from torch import Tensor

from tune_stn.data.normalise import Normalise
from tune_stn.data.splits import Split, Splits
from tune_stn.nn.cuda_graph import WARM_UP
from tune_stn.tasks import Task, cifar10, fashion_mnist, get_task
from tune_stn.training import Trainer, objectives

NETWORKS: dict[str, tuple[int, ...]] = {
    "fashion-mnist-mlp": (1, 28, 28),
    "fashion-mnist-cnn": (1, 28, 28),
    "cifar10-alexnet": (3, 32, 32),
    "cifar10-vgg16": (3, 32, 32),
    "cifar10-resnet18": (3, 32, 32),
}
# A step of the two deep ones at full width takes a CPU many seconds.
SMALL = ("fashion-mnist-mlp", "fashion-mnist-cnn", "cifar10-alexnet")
# Whole epochs: of all networks where they take seconds, of the one that takes minutes on two cores.
EPOCHS = {
    "cpu": {"fashion-mnist-cnn": 51_000},
    "cuda": {**dict.fromkeys(NETWORKS, 40_000), "fashion-mnist-cnn": 51_000},
}
ALGORITHMS = ("fixed", "stn", "delta-stn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], help="default: on a CPU the three small ones")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "vision_cost")
    arguments = parser.parse_args()
    device, small = arguments.device, arguments.smoke_test
    settings = {name: getattr(arguments, name) for name in ("precision", "compile", "cuda_graphs")}
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    about = {"device": name, "torch": torch.__version__, **settings}

    steps, epochs = [], []
    for threads in arguments.threads[:1] if device == "cuda" or small else arguments.threads:
        torch.set_num_threads(threads)
        rates = machine(device, small=small)
        for network in arguments.networks or (NETWORKS if device == "cuda" else SMALL):
            task = task_of(network, settings, small=small)
            table = measure_steps(task, NETWORKS[network], device, 2 if small else arguments.rounds, rates)
            steps.append(table.assign(network=network, threads=threads, **about))
            print(
                f"\n{network}, {threads} thread(s), {device}",
                table.to_string(index=False, float_format="%.3g"),
                sep="\n",
            )
            if network in EPOCHS[device]:
                images = 256 if small else EPOCHS[device][network]
                rows = [measure_epoch(task, algorithm, NETWORKS[network], images, device) for algorithm in ALGORITHMS]
                epochs.append(pd.DataFrame(rows).assign(network=network, threads=threads, **about))
                print(epochs[-1].to_string(index=False, float_format="%.3g"), flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    pd.concat(steps).to_csv(arguments.results / f"{device}-steps.csv", index=False)
    if epochs:
        pd.concat(epochs).to_csv(arguments.results / f"{device}-epochs.csv", index=False)


def task_of(network: str, settings: dict[str, Any], *, small: bool) -> Task:
    """The built-in task at its own size; its hyper-steps begin at once."""
    size = {"width": 2} if network.startswith("cifar10") else {"hidden": 16}
    return get_task(network, **settings, warmup_epochs=0, **(size | {"batch_size": 16} if small else {}))


def random_images(shape: tuple[int, ...], count: int, task: Task) -> Splits:
    """Bytes, normalised as those of the task are."""
    source = cifar10 if task.name.startswith("cifar10") else fashion_mnist
    prepare = Normalise(source.MEAN, source.STD)

    def split(images: int) -> Split:
        pixels = torch.randint(256, (images, *shape), dtype=torch.uint8)
        return Split(pixels, torch.randint(10, (images,)), prepare=prepare)

    return Splits(split(count), split(max(128, count // 5)), split(128))


# Steps ------------------------------------------------------------------------------------------------------------


def measure_steps(
    task: Task, shape: tuple[int, ...], device: str, rounds: int, rates: tuple[float, float]
) -> pd.DataFrame:
    size = task.training.batch_size
    steps: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for algorithm in ALGORITHMS:
        trainer = Trainer(task, algorithm=algorithm, device=device, splits=random_images(shape, 2 * size, task))
        step = train_step(trainer, first_batch(trainer.splits.train, size))
        for _ in range(2):  # counted, then compiled where that was asked for
            step()
        steps[algorithm] = step
        rows[algorithm] = {
            "algorithm": algorithm,
            "operations": step_flops(trainer, step),
            "bytes": traffic(trainer, step),
            "memory_mib": peak_memory(step, device) / 2**20,
        }
        for _ in range(WARM_UP):  # what was to be looked into is done: recorded where that was asked for
            step()
    times: dict[str, list[float]] = {algorithm: [] for algorithm in steps}
    ratios: dict[str, list[float]] = {algorithm: [] for algorithm in steps}
    for _ in range(rounds):
        for algorithm, step in steps.items():
            times[algorithm].append(seconds(step, device))
            ratios[algorithm].append(times[algorithm][-1] / seconds(steps["fixed"], device))
    for algorithm, row in rows.items():
        typical = pd.Series(times[algorithm]).median()
        low, median, high = pd.Series(ratios[algorithm]).quantile([0.25, 0.5, 0.75])
        row |= {"images_per_second": size / typical, "over_plain": median, "quartile_1": low, "quartile_3": high}
        row |= {"share_of_matrix_rate": row["operations"] / rates[0] / typical}
        row |= {"share_of_bandwidth": row["bytes"] / rates[1] / typical, "rounds": rounds, "batch_size": size}
    return pd.DataFrame(rows.values())


def traffic(trainer: Trainer, step: Callable[[], object]) -> int:
    """Bytes that a step moves at least: feature maps kept for backward twice, and each parameter eight times (read
    forward and backward; its gradient written and read; its momentum and itself read and written).
    """
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    maps = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return 2 * maps + 8 * sum(p.numel() * p.element_size() for p in parameters)


# Epochs -----------------------------------------------------------------------------------------------------------


def measure_epoch(task: Task, algorithm: str, shape: tuple[int, ...], images: int, device: str) -> dict[str, Any]:
    """An epoch's training, without evaluation; and the shares of another one, in which clocks halt a GPU."""
    trainer = Trainer(task, algorithm=algorithm, device=device, splits=random_images(shape, images, task))
    epoch_seconds(trainer)  # warms up
    row = {"algorithm": algorithm, "images": images, "seconds": epoch_seconds(trainer)}
    if task.training.cuda_graphs:  # nothing can be timed inside one
        apart = replace(task, training=replace(task.training, cuda_graphs=False))
        trainer = Trainer(apart, algorithm=algorithm, device=device, splits=trainer.splits)
        epoch_seconds(trainer)
    spent = {"data": 0.0, "augmentation": 0.0}

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = now(device)
            result = function(*arguments)
            if torch.is_grad_enabled():  # evaluation draws batches too
                spent[what] += now(device) - began
            return result

        return call

    with (
        mock.patch.object(objectives, "augmented", timed("augmentation", objectives.augmented)),
        mock.patch.object(Split, "take", timed("data", Split.take)),
    ):
        whole = epoch_seconds(trainer)
    return row | {f"share_of_{what}": part / whole for what, part in spent.items()}


def epoch_seconds(trainer: Trainer) -> float:
    before = trainer.device_time_s
    trainer.run_epoch()
    return trainer.device_time_s - before


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def steps_table() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "vision_cost" / "cpu-steps.csv").to_dict("records"):
        spread = f"{row['over_plain']:.2f} ({row['quartile_1']:.2f} to {row['quartile_3']:.2f})"
        cells = [row["network"], f"{row['threads']}", row["algorithm"], f"{row['images_per_second']:,.0f}", spread]
        shares = [f"{100 * row[f'share_of_{what}']:.0f}" for what in ("matrix_rate", "bandwidth")]
        rows.append([*cells, *shares, f"{row['memory_mib']:.0f}"])
    header = ["network", "threads", "step", "images a second", "time over plain (quartiles)", "% of the matrix rate"]
    return markdown([*header, "% of the bandwidth", "peak memory, MiB"], rows)


def epochs_table() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "vision_cost" / "cpu-epochs.csv").to_dict("records"):
        cells = [row["network"], f"{row['threads']}", row["algorithm"], f"{row['images']:,}", f"{row['seconds']:.1f}"]
        parts = [row["share_of_data"], row["share_of_augmentation"]]
        rows.append([*cells, *(f"{100 * part:.1f}" for part in (*parts, sum(parts)))])
    header = ["network", "threads", "algorithm", "images", "s an epoch", "data, %", "augmentation, %", "together, %"]
    return markdown(header, rows)


TABLES: Mapping[str, Callable[[], str]] = {"vision-steps": steps_table, "vision-epochs": epochs_table}


if __name__ == "__main__":
    main()
