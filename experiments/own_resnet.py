"""A task of your own: fine-tuning a residual network with batch norm, its code untouched.

`ResNet` is written as such networks usually are. It is first trained plainly on digits turned upside down, which stands
for the weights somebody gives you; the first stage is then frozen, and the rest is fine-tuned on few digits the right
way up. What regularises that is tuned on the way: stochastic depth and dropout by the paths of their modules, weight
decay, shift and contrast of the images. Batch norm keeps its plain statistics; with `norms=True` its affine part
responds too. Prints, epoch by epoch, the losses and where the hyperparameters are.

    python experiments/own_resnet.py
    python experiments/own_resnet.py --smoke-test
    cd experiments && tune-stn compare --task own_resnet:task --methods stn,random --budget 120 --out runs
"""

from __future__ import annotations

import argparse
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn import LogUniform, SearchSpace, Task, Training, Uniform
from tune_stn.data import Splits, random_splits
from tune_stn.data.augment import ColourJitter, RandomAffine
from tune_stn.nn import StochasticDepth
from tune_stn.nn.penalties import WeightDecay
from tune_stn.tasks import accuracy
from tune_stn.training import Trainer

# The user's model ------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions with batch norm, and a shortcut; the branch is dropped at random, whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop_path = StochasticDepth(0.0)

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(maps + self.drop_path(branch))


class ResNet(nn.Module):
    """A stem and two stages; inputs `(batch, 1, 8, 8)`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.stage2 = nn.Sequential(Block(2 * width), Block(2 * width))
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage2(self.down(self.stage1(self.stem(images))))
        return self.fc(self.dropout(maps.mean((2, 3))))  # type: ignore[no-any-return]


@cache
def pretrained_weights() -> dict[str, Tensor]:
    """What a download would give: the state of a plain network trained on upside-down digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        images, targets = digits()
        for _ in range(5):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch].flip(-2)), targets[batch]).backward()
                optimizer.step()
    return model.state_dict()


def pretrained_resnet() -> ResNet:
    """The pretrained network with its stem and first stage frozen and a new last layer."""
    model = ResNet()
    head = {f"fc.{name}": value for name, value in model.fc.state_dict().items()}
    model.load_state_dict({**pretrained_weights(), **head})
    for module in (model.stem, model.stage1):
        module.requires_grad_(False)
    return model


# What is to be tuned ---------------------------------------------------------------------------------------------


def task() -> Task:
    """Stochastic depth, dropout, weight decay, shift and contrast of a residual network that is fine-tuned."""
    return Task(
        name="own-resnet",
        model=pretrained_resnet,
        data=load,
        space=SearchSpace(
            {
                "depth": Uniform(0.0, 0.8),
                "dropout": Uniform(0.0, 0.8),
                "shift": Uniform(0.0, 0.3),
                "contrast": Uniform(0.0, 0.8),
                "weight_decay": LogUniform(1e-6, 1e-1),
            }
        ),
        start={"depth": 0.05, "dropout": 0.05, "shift": 0.02, "contrast": 0.05, "weight_decay": 1e-5},
        dropout={"stage2.*.drop_path": "depth", "dropout": "dropout"},
        augmentations=(
            ColourJitter(contrast="contrast", mean=(0.3,), std=(1.0,)),
            RandomAffine(translation="shift", padding="border"),
        ),
        penalties=(WeightDecay("weight_decay"),),
        metrics={"accuracy": accuracy},
        training=Training(
            epochs=30,
            batch_size=25,
            lr=0.02,
            optimizer_args={"momentum": 0.9},
            clip_norm=5.0,
            hyper_lr=0.02,
            train_steps=2,
            warmup_epochs=3,
            scale=0.5,
            test_every=5,  # as often as it is printed
        ),
    )


def load(seed: int) -> Splits:
    images, targets = digits()
    return Splits(*random_splits(images, targets, sizes=(100, 600, 1000), seed=seed))


def digits() -> tuple[Tensor, Tensor]:
    """Images of shape `(n, 1, 8, 8)`, grey values minus their mean of about .3, and targets."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16 - 0.3
    return images, torch.tensor(bunch.target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for algorithm in ("fixed", "stn", "delta-stn"):
        trainer = Trainer(task(), algorithm=algorithm, seed=arguments.seed)
        print(f"\n{algorithm}\n{trainer.model.conversion}")
        epochs = 1 if arguments.smoke_test else trainer.task.training.epochs
        for epoch in range(1, epochs + 1):
            report = trainer.run_epoch()
            if epoch % 5 == 0 or epoch == epochs:
                values = ", ".join(f"{key[3:]} {value:.3g}" for key, value in report.items() if key.startswith("hp/"))
                print(f"epoch {epoch}: validation {report['val_loss']:.4f}, test {report['test_loss']:.4f}; {values}")


if __name__ == "__main__":
    main()
