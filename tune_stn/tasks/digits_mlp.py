"""Handwritten digits, a small MLP: the task that runs anywhere in seconds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tune_stn.data.augment import InputScale
from tune_stn.data.source import DataError
from tune_stn.data.splits import Splits, random_splits
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import LogUniform, SearchSpace, Uniform
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task, accuracy

IMAGES = 1797


def digits_mlp(*, train_images: int = 300, valid_images: int = 600, hidden: int = 128) -> Task:
    """1,797 real 8x8 digits (shipped inside scikit-learn), an MLP, five hyperparameters; seconds on a CPU.

    Few training images make regularisation matter; the rest of the images are the test split. The learning rate is the
    best of a sweep of the plain network at the start values (arm `lr` of experiments/rules.py).
    """
    check_sizes(train_images=train_images, valid_images=valid_images, hidden=hidden)
    if train_images + valid_images >= IMAGES:
        raise ValueError(
            f"train_images={train_images}, valid_images={valid_images}: accepted are 1 or more of each and fewer than "
            f"{IMAGES} together, for the rest is the test split"
        )
    return Task(
        name="digits-mlp",
        description="8x8 digits",
        model=lambda: nn.Sequential(
            nn.Dropout(),
            nn.Linear(64, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, 10),
        ),
        data=lambda seed: _load(train_images, valid_images, seed),
        space=SearchSpace(
            {
                "dropout_input": Uniform(0.0, 0.9),
                "dropout_1": Uniform(0.0, 0.9),
                "dropout_2": Uniform(0.0, 0.9),
                "input_scale": Uniform(0.0, 1.0),
                "weight_decay": LogUniform(1e-6, 1e-1),
            }
        ),
        start={
            "dropout_input": 0.05,
            "dropout_1": 0.05,
            "dropout_2": 0.05,
            "input_scale": 0.05,
            "weight_decay": 1e-5,
        },
        dropout={"0": "dropout_input", "3": "dropout_1", "6": "dropout_2"},
        augmentations=(InputScale("input_scale"),),
        penalties=(WeightDecay("weight_decay"),),
        metrics={"accuracy": accuracy},
        training=Training(
            epochs=60,
            batch_size=50,
            lr=0.1,
            optimizer_args={"momentum": 0.9},
            clip_norm=5.0,
            train_steps=3,
            warmup_epochs=5,
            scale=0.5,
        ),
    )


def _load(train_images: int, valid_images: int, seed: int) -> Splits:
    # As sklearn.datasets.load_digits reads it, whose import takes longer than a short run.
    package = find_spec("sklearn")
    file = Path((package and package.origin) or ".").parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        where = f"its file {file} is missing" if package else "that is not installed"
        raise DataError(f"the digits are those inside scikit-learn, and {where}; `pip install scikit-learn`")
    table = np.loadtxt(file, delimiter=",")
    images = torch.tensor(table[:, :-1], dtype=torch.float32) / 16 - 0.3
    sizes = (train_images, valid_images, len(images) - train_images - valid_images)
    return Splits(*random_splits(images, torch.tensor(table[:, -1], dtype=torch.int64), sizes=sizes, seed=seed))
