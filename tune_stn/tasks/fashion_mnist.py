"""Fashion-MNIST, in the networks of the Delta-STN paper: an MLP and a small CNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune_stn.data import fashion_mnist
from tune_stn.data.augment import Cutout, InputScale, RandomAffine
from tune_stn.data.normalise import Normalise
from tune_stn.data.splits import Split, Splits, official_splits
from tune_stn.space import Integer, SearchSpace, Uniform
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task, accuracy

# Mean and standard deviation of the training pixels, in units of the full range.
MEAN, STD = (0.2860,), (0.3530,)
# Of the Delta-STN authors' code, but for the clipping, which keeps narrow networks from diverging at high rates.
TRAINING = Training(
    epochs=200, batch_size=128, lr=0.01, optimizer_args={"momentum": 0.9}, clip_norm=5.0, warmup_epochs=5
)
# Rotation in degrees, translation as a share of the width.
AFFINE_SPACE = {"rotation": Uniform(0.0, 180.0), "translation": Uniform(0.0, 0.5)}
AFFINE_START = {"rotation": 9.0, "translation": 0.025}


def fashion_mnist_mlp(
    *,
    train_images: int = 51_000,
    valid_images: int = 9_000,
    test_images: int = 10_000,
    hidden: int = 1200,
    affine: bool = False,
    data_dir: str | None = None,
) -> Task:
    """Fashion-MNIST, an MLP with two hidden layers, dropout on input and hidden layers and input scale.

    `affine=True` adds rotation (up to 180 degrees) and translation. Strong ones do harm here: hyperparameters that
    differ in kind must not all be raised alike.
    """
    check_sizes(train_images=train_images, valid_images=valid_images, test_images=test_images, hidden=hidden)
    return Task(
        name="fashion-mnist-mlp",
        description="Fashion-MNIST, MLP",
        model=lambda: nn.Sequential(
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(784, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, 10),
        ),
        data=lambda seed: _load(train_images, valid_images, test_images, data_dir, seed),
        space=SearchSpace(
            {
                "dropout_input": Uniform(0.0, 0.95),
                "dropout_1": Uniform(0.0, 0.95),
                "dropout_2": Uniform(0.0, 0.95),
                "input_scale": Uniform(0.0, 1.0),
                **(AFFINE_SPACE if affine else {}),
            }
        ),
        start={
            "dropout_input": 0.05,
            "dropout_1": 0.05,
            "dropout_2": 0.05,
            "input_scale": 0.05,
            **(AFFINE_START if affine else {}),
        },
        dropout={"1": "dropout_input", "4": "dropout_1", "7": "dropout_2"},
        augmentations=(
            InputScale("input_scale"),
            *((RandomAffine(rotation="rotation", translation="translation"),) if affine else ()),
        ),
        metrics={"accuracy": accuracy},
        training=TRAINING,
    )


def fashion_mnist_cnn(
    *,
    train_images: int = 51_000,
    valid_images: int = 9_000,
    test_images: int = 10_000,
    hidden: int = 256,
    data_dir: str | None = None,
) -> Task:
    """Fashion-MNIST, a small CNN, six hyperparameters: four dropouts, cutout holes and length.

    `train_images=5000` makes regularisation matter and keeps a CPU run short.
    """
    check_sizes(train_images=train_images, valid_images=valid_images, test_images=test_images, hidden=hidden)
    return Task(
        name="fashion-mnist-cnn",
        description="Fashion-MNIST, CNN",
        # Channels last: on a CPU the pooling of these maps then takes a third of the time, on a GPU the convolutions.
        model=lambda: SimpleCNN(hidden).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        data=lambda seed: _load(train_images, valid_images, test_images, data_dir, seed),
        space=SearchSpace(
            {
                "dropout_0": Uniform(0.0, 0.95),
                "dropout_1": Uniform(0.0, 0.95),
                "dropout_2": Uniform(0.0, 0.95),
                "dropout_fc": Uniform(0.0, 0.95),
                "cutout_length": Integer(2, 24),
                "cutout_holes": Integer(0, 5),
            }
        ),
        start={
            "dropout_0": 0.05,
            "dropout_1": 0.05,
            "dropout_2": 0.05,
            "dropout_fc": 0.05,
            "cutout_length": 4,
            "cutout_holes": 1,
        },
        dropout={name: name for name in ("dropout_0", "dropout_1", "dropout_2", "dropout_fc")},
        augmentations=(Cutout("cutout_holes", "cutout_length", max_holes=5),),
        metrics={"accuracy": accuracy},
        training=TRAINING,
    )


class SimpleCNN(nn.Module):
    """Two 5x5 convolutions with max-pooling and one hidden layer; inputs `(batch, 1, 28, 28)`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dropout_0 = nn.Dropout()
        self.conv_1 = nn.Conv2d(1, 16, 5, padding=2)
        self.dropout_1 = nn.Dropout()
        self.conv_2 = nn.Conv2d(16, 32, 5, padding=2)
        self.dropout_2 = nn.Dropout()
        self.fc = nn.Linear(32 * 7 * 7, hidden)
        self.dropout_fc = nn.Dropout()
        self.output = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.dropout_0(images)
        # Pooling before the ReLU gives the same values with a quarter of the element-wise work.
        maps = self.dropout_1(torch.relu(torch.max_pool2d(self.conv_1(maps), 2)))
        maps = self.dropout_2(torch.relu(torch.max_pool2d(self.conv_2(maps), 2)))
        features: Tensor = self.dropout_fc(torch.relu(self.fc(maps.flatten(1))))
        return self.output(features)  # type: ignore[no-any-return]


def _load(train_images: int, valid_images: int, test_images: int, data_dir: str | None, seed: int) -> Splits:
    return official_splits(
        *(Split(split.inputs[:, None], split.targets.long()) for split in fashion_mnist.load(data_dir)),
        train_images=train_images,
        valid_images=valid_images,
        test_images=test_images,
        prepare=Normalise(MEAN, STD),
        seed=seed,
    )
