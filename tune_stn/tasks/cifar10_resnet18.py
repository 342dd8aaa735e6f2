"""CIFAR-10, in a ResNet18 with batch norm, whose weight decay is tuned too.

The network of He et al. (2016, arXiv 1512.03385) as it is usual for 32x32 pixels: a 3x3 convolution and no pooling
before its four stages. The Delta-STN paper (arXiv 2010.13514) tunes one; its authors' code does not have it, so the set
of hyperparameters is this project's: their ten of augmentation, weight decay and the dropout before the last layer.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from tune_stn.data.cifar10 import CLASSES
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import LogUniform, SearchSpace, Uniform
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.cifar10 import AUGMENTATION_SPACE, AUGMENTATION_START, AUGMENTATIONS, TRAINING, load
from tune_stn.tasks.task import Task, accuracy


def cifar10_resnet18(
    *,
    train_images: int = 40_000,
    valid_images: int = 10_000,
    test_images: int = 10_000,
    width: int = 64,
    data_dir: str | None = None,
) -> Task:
    """CIFAR-10, ResNet18 with batch norm, twelve hyperparameters: weight decay, dropout, affine maps, colour, cutout.

    `width` is the number of channels of the first stage, to which all other sizes keep their ratio.
    """
    check_sizes(train_images=train_images, valid_images=valid_images, test_images=test_images, width=width)
    return Task(
        name="cifar10-resnet18",
        description="CIFAR-10, ResNet18",
        model=lambda: ResNet18(width).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        data=lambda seed: load(train_images, valid_images, test_images, data_dir, seed),
        space=SearchSpace(
            {"weight_decay": LogUniform(1e-6, 1e-1), "dropout": Uniform(0.0, 0.95), **AUGMENTATION_SPACE},
            per_batch=["weight_decay"],
        ),
        start={"weight_decay": 1e-4, "dropout": 0.05, **AUGMENTATION_START},
        dropout={"dropout": "dropout"},
        augmentations=AUGMENTATIONS,
        penalties=(WeightDecay(),),
        metrics={"accuracy": accuracy},
        training=TRAINING,
    )


class ResNet18(nn.Sequential):
    """A stem, four stages of two blocks, and a linear layer; inputs `(batch, 3, 32, 32)`."""

    def __init__(self, width: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(3, width, 3, padding=1, bias=False), norm=nn.BatchNorm2d(width), relu=nn.ReLU()
        )
        channels = width
        for i in range(4):
            for block in (1, 2):
                stride = 2 if i > 0 and block == 1 else 1
                layers[f"stage_{i + 1}_block_{block}"] = ResidualBlock(
                    channels, channels := width * 2**i, stride=stride
                )
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout()}
        layers["output"] = nn.Linear(channels, CLASSES)
        super().__init__(layers)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        changes = stride > 1 or channels != out
        # On a CPU, oneDNN's weight gradient of a strided 1x1 convolution in channels last writes past its workspace if
        # there are fewer input channels than a vector of the processor holds, 8 or 16: gradients are wrong, or the
        # process aborts (oneDNN issue 6035; seen in torch 2.13). There the block picks the pixels that count itself.
        self.step = stride if channels < 16 else 1
        self.shortcut: nn.Module = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride // self.step, bias=False), nn.BatchNorm2d(out))
            if changes
            else nn.Identity()
        )

    def forward(self, maps: Tensor) -> Tensor:
        kept = maps[..., :: self.step, :: self.step] if self.step > 1 else maps
        return torch.relu(self.branch(maps) + self.shortcut(kept))
