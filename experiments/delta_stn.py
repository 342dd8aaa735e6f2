"""The Delta-STN paper's networks, each tuned by random search, Bayesian optimisation, STN and Delta-STN at equal cost.

After the table of arXiv 2010.13514: an MLP and a CNN on Fashion-MNIST, AlexNet, VGG16 (26 hyperparameters) and ResNet18
(batch norm; weight decay is tuned) on CIFAR-10. Each method may spend the same, and tries the task's start values
first. Writes to experiments/results/delta_stn/<network>-<size> what `cifar10_tuning.py` writes. AlexNet is its study:
at one size the two scripts share their runs.

    python experiments/delta_stn.py --data-dir FOLDER                  # subsets of the images; two hours on 2 cores
    python experiments/delta_stn.py --data-dir FOLDER --size full --gpus-per-trial 0.25
    python experiments/delta_stn.py --task fashion-mnist-mlp --smoke-test

Fashion-MNIST is looked for where `tune-stn data fashion-mnist` puts it and in the folder of the Debian package. Goes on
where it was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pandas as pd
from cifar10_tuning import SEEDS, SIZES, vision_table, write
from comparison import Study, main
from pages import RESULTS, markdown

METHODS = ("random", "gp-bo", "stn", "delta-stn")
FASHION = {"train_images": 2500, "valid_images": 2500, "test_images": 1000, "batch_size": 64, "epochs": 30}
CIFAR = {"train_images": 2500, "valid_images": 1500, "test_images": 1000, "batch_size": 32, "warmup_epochs": 2}
TINY = {"train_images": 128, "valid_images": 128, "test_images": 128, "epochs": 2, "warmup_epochs": 1, "train_steps": 1}
NETWORKS: Mapping[str, Mapping[str, Study]] = {
    "fashion-mnist-mlp": {
        "cpu": Study(100, SEEDS[:3], {**FASHION, "hidden": 300}),
        "full": Study(3000, SEEDS[:3], {}),
        "smoke": Study(3, SEEDS[:1], {**TINY, "hidden": 16}),
    },
    "fashion-mnist-cnn": {
        "cpu": Study(100, SEEDS[:3], FASHION),
        "full": Study(3000, SEEDS[:3], {}),
        "smoke": Study(6, SEEDS[:1], {**TINY, "hidden": 16}),
    },
    "cifar10-alexnet": {size: replace(study, shared_with="cifar10_tuning") for size, study in SIZES.items()},
    "cifar10-vgg16": {
        # Without batch norm, narrower or at the paper's rate this depth hardly learns from so few images.
        "cpu": Study(45, SEEDS[:3], {**CIFAR, "width": 12, "lr": 0.02, "epochs": 20}),
        "full": Study(3000, SEEDS[:3], {}),
        "smoke": Study(6, SEEDS[:1], {**TINY, "width": 2}),
    },
    "cifar10-resnet18": {
        "cpu": Study(30, SEEDS[:3], {**CIFAR, "width": 8, "epochs": 10}),
        "full": Study(3000, SEEDS[:3], {}),
        "smoke": Study(6, SEEDS[:1], {**TINY, "width": 2}),
    },
}


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
    main(__file__, __doc__, METHODS, NETWORKS, write, with_data=[name for name in NETWORKS if "cifar10" in name])
