"""CIFAR-10, in the VGG16 of the Delta-STN paper (Bae and Grosse 2020, arXiv 2010.13514)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from tune_stn.data.cifar10 import CLASSES
from tune_stn.space import Domain, SearchSpace, Uniform
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.cifar10 import AUGMENTATION_SPACE, AUGMENTATION_START, AUGMENTATIONS, TRAINING, load
from tune_stn.tasks.task import Task, accuracy

# Output channels of the convolutions, in units of the width; each stage ends with a pooling.
STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
DROPOUT_RATES = (*(f"dropout_{i}" for i in range(14)), "dropout_fc_1", "dropout_fc_2")


def cifar10_vgg16(
    *,
    train_images: int = 40_000,
    valid_images: int = 10_000,
    test_images: int = 10_000,
    width: int = 64,
    data_dir: str | None = None,
) -> Task:
    """CIFAR-10, VGG16, the Delta-STN paper's 26 hyperparameters: dropouts, affine maps, colour, cutout.

    `width` is the number of channels of the first convolution, to which all other sizes keep their ratio. Between
    convolutions whole channels are dropped.
    """
    check_sizes(train_images=train_images, valid_images=valid_images, test_images=test_images, width=width)
    space: dict[str, Domain] = {**{name: Uniform(0.0, 0.95) for name in DROPOUT_RATES}, **AUGMENTATION_SPACE}
    return Task(
        name="cifar10-vgg16",
        description="CIFAR-10, VGG16",
        model=lambda: vgg16(width).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        data=lambda seed: load(train_images, valid_images, test_images, data_dir, seed),
        space=SearchSpace(space),
        start={**dict.fromkeys(DROPOUT_RATES, 0.05), **AUGMENTATION_START},
        dropout={name: name for name in DROPOUT_RATES},
        augmentations=AUGMENTATIONS,
        metrics={"accuracy": accuracy},
        training=TRAINING,
    )


def vgg16(width: int) -> nn.Sequential:
    """Thirteen 3x3 convolutions and three linear layers, without batch norm; inputs `(batch, 3, 32, 32)`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(dropout_0=nn.Dropout2d())
    channels = 3
    for stage in STAGES:
        for place, multiple in enumerate(stage, start=1):
            i = sum(name.startswith("conv") for name in layers) + 1
            layers[f"conv_{i}"] = conv = nn.Conv2d(channels, channels := multiple * width, 3, padding=1)
            # He et al. 2015 (arXiv 1502.01852), by outputs: without it, thirteen layers of ReLU lose the signal.
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            if place == len(stage):  # before the ReLU: the same values with a quarter of the element-wise work
                layers[f"pool_{i}"] = nn.MaxPool2d(2)
            layers[f"relu_{i}"] = nn.ReLU()
            layers[f"dropout_{i}"] = nn.Dropout2d()
    layers["flatten"] = nn.Flatten()  # one pixel is left
    for i in (1, 2):
        layers[f"fc_{i}"] = nn.Linear(channels, channels)
        layers[f"relu_fc_{i}"] = nn.ReLU()
        layers[f"dropout_fc_{i}"] = nn.Dropout()
    layers["output"] = nn.Linear(channels, CLASSES)
    return nn.Sequential(layers)
