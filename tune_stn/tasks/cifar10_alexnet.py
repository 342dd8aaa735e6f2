"""CIFAR-10, in the network of the STN paper (MacKay et al. 2019, arXiv 1903.03088, section 5.2)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from tune_stn.data.augment import Cutout, InputDropout, InputScale
from tune_stn.data.cifar10 import CLASSES
from tune_stn.space import Domain, Integer, SearchSpace, Uniform
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.cifar10 import COLOUR, COLOUR_SPACE, load
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task, accuracy

DROPOUT_RATES = (*(f"dropout_conv_{i}" for i in range(1, 6)), "dropout_fc_1", "dropout_fc_2")


def cifar10_alexnet(
    *,
    train_images: int = 40_000,
    valid_images: int = 10_000,
    test_images: int = 10_000,
    width: int = 64,
    data_dir: str | None = None,
) -> Task:
    """CIFAR-10, AlexNet, the STN paper's fifteen hyperparameters: dropouts, input noise, colour, cutout.

    `width` is the number of channels of the first convolution, to which all other sizes keep their ratio.
    """
    check_sizes(train_images=train_images, valid_images=valid_images, test_images=test_images, width=width)
    space: dict[str, Domain] = {
        **{name: Uniform(0.0, 0.9) for name in DROPOUT_RATES},
        "input_dropout": Uniform(0.0, 1.0),
        "input_scale": Uniform(0.0, 0.3),
        **COLOUR_SPACE,
        "cutout_length": Integer(0, 24),
        "cutout_holes": Integer(0, 4),
    }
    return Task(
        name="cifar10-alexnet",
        description="CIFAR-10, AlexNet",
        # Channels last: the faster format of these convolutions on a GPU, and of their pooling on a CPU.
        model=lambda: alexnet(width).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        data=lambda seed: load(train_images, valid_images, test_images, data_dir, seed),
        space=SearchSpace(space),
        start={**dict.fromkeys(space, 0.05), "cutout_length": 4, "cutout_holes": 1},
        dropout={name: name for name in DROPOUT_RATES},
        # Colour first, for it needs real pixels; input noise last, as in a layer of the network.
        augmentations=(COLOUR, Cutout(max_holes=4), InputScale(), InputDropout()),
        metrics={"accuracy": accuracy},
        training=Training(
            epochs=200,
            batch_size=128,
            lr=0.01,
            optimizer_args={"momentum": 0.9},
            lr_schedule="NonMonotone",
            lr_schedule_args={"factor": 0.1, "window": 60},
            hyper_optimizer="Adam",
            hyper_lr=3e-3,
            train_steps=2,
            warmup_epochs=5,
            scale=0.5,
            entropy_weight=1e-3,
        ),
    )


def alexnet(width: int) -> nn.Sequential:
    """Five 3x3 convolutions and three linear layers, without batch norm; inputs `(batch, 3, 32, 32)`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for i, (out, pools) in enumerate([(1, True), (3, True), (6, False), (4, False), (4, True)], start=1):
        layers[f"conv_{i}"] = nn.Conv2d(channels, out * width, 3, stride=2 if i == 1 else 1, padding=1)
        if pools:  # before the ReLU: the same values with a quarter of the element-wise work
            layers[f"pool_{i}"] = nn.MaxPool2d(2)
        layers[f"relu_{i}"] = nn.ReLU()
        layers[f"dropout_conv_{i}"] = nn.Dropout()
        channels = out * width
    layers["flatten"] = nn.Flatten()
    features = 4 * channels  # 2x2 pixels are left
    for i in (1, 2):
        layers[f"dropout_fc_{i}"] = nn.Dropout()
        layers[f"fc_{i}"] = nn.Linear(features, 64 * width)
        layers[f"relu_fc_{i}"] = nn.ReLU()
        features = 64 * width
    layers["output"] = nn.Linear(features, CLASSES)
    return nn.Sequential(layers)
