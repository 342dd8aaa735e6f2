"""The Delta-STN paper's networks, each tuned by random search, Bayesian optimisation, STN and Delta-STN at equal cost.

After the table of arXiv 2010.13514: an MLP and a CNN on Fashion-MNIST, AlexNet, VGG16 (26 hyperparameters) and ResNet18
(batch norm; weight decay is tuned) on CIFAR-10. Each method may spend the same, and tries the task's start values
first. Writes to experiments/results/delta_stn/<network>-<size> what `cifar10_tuning.py` writes. AlexNet is its study:
at one size the two scripts share their runs.

    python experiments/delta_stn.py --cifar10 FOLDER                  # subsets of the images; two hours on 2 cores
    python experiments/delta_stn.py --cifar10 FOLDER --size full --gpus-per-trial 0.25
    python experiments/delta_stn.py --networks fashion-mnist-mlp --smoke-test

Fashion-MNIST is looked for where `tune-stn data fashion-mnist` puts it and in the folder of the Debian package. Goes on
where it was cut off.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cifar10_tuning
import pandas as pd
from cifar10_tuning import vision_table
from comparison import run, write
from pages import RESULTS, markdown

METHODS = ("random", "gp-bo", "stn", "delta-stn")
SEEDS = cifar10_tuning.SEEDS
FASHION = {"train_images": 2500, "valid_images": 2500, "test_images": 1000, "batch_size": 64, "epochs": 30}
CIFAR = {"train_images": 2500, "valid_images": 1500, "test_images": 1000, "batch_size": 32, "warmup_epochs": 2}
TINY = {"train_images": 128, "valid_images": 128, "test_images": 128, "epochs": 2, "warmup_epochs": 1, "train_steps": 1}
# What each run may spend (plain-epoch equivalents), seeds, and settings of the task.
NETWORKS: dict[str, dict[str, tuple[float, int, dict[str, Any]]]] = {
    "fashion-mnist-mlp": {
        "cpu": (100, 3, {**FASHION, "hidden": 300}),
        "full": (3000, 3, {}),
        "smoke": (3, 1, {**TINY, "hidden": 16}),
    },
    "fashion-mnist-cnn": {
        "cpu": (100, 3, FASHION),
        "full": (3000, 3, {}),
        "smoke": (6, 1, {**TINY, "hidden": 16}),
    },
    "cifar10-alexnet": cifar10_tuning.SIZES,
    "cifar10-vgg16": {
        # Without batch norm, narrower or at the paper's rate this depth hardly learns from so few images.
        "cpu": (45, 3, {**CIFAR, "width": 12, "lr": 0.02, "epochs": 20}),
        "full": (3000, 3, {}),
        "smoke": (6, 1, {**TINY, "width": 2}),
    },
    "cifar10-resnet18": {
        "cpu": (30, 3, {**CIFAR, "width": 8, "epochs": 10}),
        "full": (3000, 3, {}),
        "smoke": (6, 1, {**TINY, "width": 2}),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="folder of CIFAR-10; default: $TUNE_STN_DATA/cifar10")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--size", choices=("cpu", "full"), default="cpu")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: all of the table")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--gpus-per-trial", type=float, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "delta_stn")
    arguments = parser.parse_args()
    size = "smoke" if arguments.smoke_test else arguments.size
    for network in arguments.networks:
        budget, seeds, settings = NETWORKS[network][size]
        shared = network == cifar10_tuning.TASK
        if network.startswith("cifar10") and arguments.cifar10:
            settings = {**settings, "data_dir": arguments.cifar10}
        print(f"\n{network}")
        results = run(
            network,
            arguments.methods.split(","),
            budget=budget,
            seeds=SEEDS[: arguments.seeds or seeds],
            settings=settings,
            gpus_per_trial=arguments.gpus_per_trial,
            out=arguments.out / (Path("cifar10_tuning") / size if shared else Path("delta_stn") / f"{network}-{size}"),
        )
        write(results, cifar10_tuning.table(results), arguments.results / f"{network}-{size}")


def page_table() -> str:
    """The layout of the Delta-STN paper's table: validation loss, and test loss there."""
    tables = {network: pd.read_csv(RESULTS / "delta_stn" / f"{network}-cpu" / "table.csv") for network in NETWORKS}
    rows = []
    for method in ("random", "gp-bo", "stn", "delta-stn"):
        cells = [method]
        for table in tables.values():
            row, least = table.set_index("method").loc[method], table["best_val_loss"].min()
            losses = f"{row['best_val_loss']:.4f} ({row['test_loss_at_best']:.4f})"
            cells.append(f"**{losses}**" if row["best_val_loss"] == least else losses)
        rows.append(cells)
    return markdown(
        ["val. loss (test loss)", *(f"{name}, {t['seeds'].max()} seeds" for name, t in tables.items())], rows
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "delta-stn": page_table,
    **{f"delta-stn {name}": partial(vision_table, RESULTS / "delta_stn" / f"{name}-cpu") for name in NETWORKS},
}


if __name__ == "__main__":
    main()
