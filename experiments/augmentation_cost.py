"""What augmentation with hyperparameters of their own for each example costs, beside a plain training step.

All vision hyperparameters at once (colour jitter of four, affine map of four, flip, cutout, input noise, scale and
dropout, mixup, label smoothing), each with values of its own for each of 128 images of 3x32x32, against a plain
training step of AlexNet on CIFAR-10 (task cifar10-alexnet). Steps and augmentations take turns in one process: on a
shared machine nothing else means anything. Prints median and quartiles of their time in percent of the step of the
same round, and writes them to experiments/results/augmentation_cost/.

    python experiments/augmentation_cost.py              # the figures of the results page; about a minute
    python experiments/augmentation_cost.py --smoke-test
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from pages import RESULTS, markdown
from step_cost import seconds
from torch import Tensor

from tune_stn.data.augment import (
    Augmentation,
    ColourJitter,
    Cutout,
    InputDropout,
    InputNoise,
    InputScale,
    LabelAugmentation,
    LabelSmoothing,
    Mixup,
    RandomAffine,
    RandomFlip,
)
from tune_stn.space.sample import Sample
from tune_stn.tasks import Task, get_task
from tune_stn.tasks.cifar10 import MEAN, STD

AUGMENTATIONS: Sequence[Augmentation] = (
    ColourJitter(brightness="brightness", contrast="contrast", saturation="saturation", hue="hue", mean=MEAN, std=STD),
    RandomAffine(translation="translation", rotation="rotation", scale="scale", shear="shear"),
    RandomFlip(),
    Cutout(max_holes=4),
    InputScale(),
    InputNoise(),
    InputDropout(),
)
LABEL_AUGMENTATIONS: Sequence[LabelAugmentation] = (Mixup(classes=10), LabelSmoothing(classes=10))
REPEATS = 5  # of each augmentation after a step: they are a hundred times as short
# The greatest value of each: every example has a draw between 0 and it. What it costs does not depend on it.
GREATEST = {
    "brightness": 1.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "hue": 0.5,
    "translation": 0.3,
    "rotation": 45.0,
    "scale": 0.5,
    "shear": 30.0,
    "cutout_holes": 4.0,
    "cutout_length": 24.0,
    "input_scale": 0.3,
    "input_noise": 0.5,
    "input_dropout": 0.9,
    "mixup": 1.0,
    "label_smoothing": 0.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "augmentation_cost")
    arguments = parser.parse_args()
    rounds, width = (2, 2) if arguments.smoke_test else (arguments.rounds, 64)

    tables = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        table = measure(rounds, width, arguments.batch_size, arguments.device)
        tables.append(table.assign(threads=threads))
        print(f"\nbatch {arguments.batch_size}, {threads} thread(s), {rounds} rounds, {arguments.device}")
        print(table.to_string(index=False, float_format="%.2f"))
    together = pd.concat(tables).assign(
        device=torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
        torch=torch.__version__,
        batch_size=arguments.batch_size,
        width=width,
        rounds=rounds,
    )
    arguments.results.mkdir(parents=True, exist_ok=True)
    together.to_csv(arguments.results / f"{arguments.device}.csv", index=False)


def measure(rounds: int, width: int, batch_size: int, device: str) -> pd.DataFrame:
    """Time in percent of the plain step of the same round: median and quartiles; and its median in milliseconds."""
    torch.manual_seed(0)
    pixels, targets = torch.rand(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    inputs, targets = ((pixels - mean) / std).to(device), targets.to(device)
    values = {name: greatest * torch.rand(batch_size, device=device) for name, greatest in GREATEST.items()}
    sample = Sample({name: value.floor() if name.startswith("cutout") else value for name, value in values.items()})

    def all_of_them() -> object:
        augmented = inputs
        for augment in AUGMENTATIONS:
            augmented = augment(augmented, sample)
        both = augmented, targets
        for label_augment in LABEL_AUGMENTATIONS:
            both = label_augment(*both, sample)
        return both

    pieces: dict[str, Callable[[], object]] = {"all": all_of_them}
    for augment in AUGMENTATIONS:
        pieces[type(augment).__name__] = partial(augment, inputs, sample)
    for label_augment in LABEL_AUGMENTATIONS:
        pieces[type(label_augment).__name__] = partial(label_augment, inputs, targets, sample)
    step = plain_step(get_task("cifar10-alexnet", width=width), inputs, targets)
    for warm_up in (step, *pieces.values()):
        seconds(warm_up, device)

    percent: dict[str, list[float]] = {name: [] for name in pieces}
    milliseconds: dict[str, list[float]] = {name: [] for name in ("plain step", *pieces)}
    for _ in range(rounds):
        plain = seconds(step, device)
        milliseconds["plain step"].append(1e3 * plain)
        for name in [name for name in pieces for _ in range(REPEATS)]:
            spent = seconds(pieces[name], device)
            percent[name].append(100 * spent / plain)
            milliseconds[name].append(1e3 * spent)
    rows = []
    for name, times in milliseconds.items():
        low, median, high = pd.Series(percent.get(name, [100.0])).quantile([0.25, 0.5, 0.75])
        row = {"what": name, "percent_of_step": median, "quartile_1": low, "quartile_3": high}
        rows.append(row | {"milliseconds": pd.Series(times).median()})
    return pd.DataFrame(rows)


def plain_step(task: Task, inputs: Tensor, targets: Tensor) -> Callable[[], object]:
    """A training step of the plain network, nothing augmented."""
    model = task.model().to(inputs.device).train()
    optimizer = task.training.make_optimizer(list(model.parameters()))

    def step() -> None:
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()

    return step


def page_table() -> str:
    table = pd.read_csv(RESULTS / "augmentation_cost" / "cpu.csv")
    table = table[table["what"] != "plain step"]
    rows = []
    for what, group in table.groupby("what", sort=False):
        by_threads = group.set_index("threads")
        cells = [
            f"{row['percent_of_step']:.2f} ({row['quartile_1']:.2f} to {row['quartile_3']:.2f})"
            for _, row in by_threads.iterrows()
        ]
        rows.append([str(what), *cells])
    threads = [f"% of a step, {count} thread(s) (quartiles)" for count in table["threads"].unique()]
    return markdown(["augmentation", *threads], rows)


TABLES: Mapping[str, Callable[[], str]] = {"augmentation-cost": page_table}


if __name__ == "__main__":
    main()
