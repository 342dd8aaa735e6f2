"""A ResNet18 with batch norm; on random images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune_stn.data.splits import Split, Splits
from tune_stn.tasks import get_task
from tune_stn.training import Trainer


def test_full_size_is_the_usual_network() -> None:
    with torch.device("meta"):
        model = get_task("cifar10-resnet18").model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert [conv.out_channels for conv in convs] == [*[64] * 5, *[128] * 4, *[256] * 4, *[512] * 4]
    assert [conv.stride[0] for conv in convs].count(2) == 3


@pytest.mark.parametrize("width", [2, 16])
def test_network_is_the_plain_one_written_out(width: int) -> None:
    """A narrow network has no strided 1x1 convolution, and is the same function."""
    torch.manual_seed(0)
    model = get_task("cifar10-resnet18", width=width).model()
    images = torch.randn(4, 3, 32, 32)
    model(images)  # running statistics that are not those of the start
    model.eval()
    maps = F.relu(model.get_submodule("norm")(model.get_submodule("conv")(images)))
    for stage in range(1, 5):
        for number in (1, 2):
            block = model.get_submodule(f"stage_{stage}_block_{number}")
            inner = F.relu(block.get_submodule("branch.1")(block.get_submodule("branch.0")(maps)))
            inner = block.get_submodule("branch.4")(block.get_submodule("branch.3")(inner))
            shortcut = block.get_submodule("shortcut")
            assert isinstance(shortcut, nn.Sequential) == (stage > 1 and number == 1)
            if isinstance(shortcut, nn.Sequential):
                maps = shortcut[1](F.conv2d(maps, shortcut[0].weight, stride=2))
            maps = F.relu(inner + maps)
    assert maps.shape == (4, 8 * width, 4, 4)
    torch.testing.assert_close(model(images), model.get_submodule("output")(maps.mean((2, 3))))


def test_weight_decay_is_drawn_once_a_batch() -> None:
    task = get_task("cifar10-resnet18")
    assert len(task.space) == 12
    assert task.space.per_batch == {"weight_decay"}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_an_epoch_runs(algorithm: str) -> None:
    split = Split(torch.randn(12, 3, 32, 32), torch.arange(12) % 10)
    task = get_task("cifar10-resnet18", width=2, batch_size=4, epochs=1, warmup_epochs=0)
    trainer = Trainer(task, algorithm=algorithm, splits=Splits(split, split, split))
    report = trainer.run_epoch()
    assert trainer.diverged is None
    assert report["val_loss"] > 0
