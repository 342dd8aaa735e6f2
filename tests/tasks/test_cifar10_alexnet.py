"""The STN paper's AlexNet; on random images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune_stn.data.splits import Split, Splits
from tune_stn.space import Integer, Uniform
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer


def small() -> Task:
    return get_task("cifar10-alexnet", width=2)


def test_fifteen_hyperparameters_with_the_papers_domains_and_starts() -> None:
    task = small()
    assert len(task.space) == 15
    dropouts = [name for name in task.space if name.startswith("dropout")]
    assert len(dropouts) == 7
    assert all(task.space[name] == Uniform(0, 0.9) for name in dropouts)
    assert task.space["input_dropout"] == Uniform(0, 1)
    assert task.space["input_scale"] == Uniform(0, 0.3)
    assert task.space["hue"] == Uniform(0, 0.5)
    assert {task.space[name] for name in ("brightness", "contrast", "saturation")} == {Uniform(0, 1)}
    assert (task.space["cutout_length"], task.space["cutout_holes"]) == (Integer(0, 24), Integer(0, 4))
    assert {value for name, value in task.start.items() if not name.startswith("cutout")} == {0.05}
    assert (task.start["cutout_length"], task.start["cutout_holes"]) == (4, 1)


def test_full_size_is_the_papers_network() -> None:
    with torch.device("meta"):
        model = get_task("cifar10-alexnet").model()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [conv.out_channels for conv in convs] == [64, 192, 384, 256, 256]
    assert [conv.stride[0] for conv in convs] == [2, 1, 1, 1, 1]
    assert [linear.out_features for linear in linears] == [4096, 4096, 10]
    assert {path for path, module in model.named_modules() if isinstance(module, nn.Dropout)} == set(small().dropout)


def test_network_is_the_plain_one_written_out() -> None:
    torch.manual_seed(0)
    model = small().model().eval()
    images = torch.randn(4, 3, 32, 32)
    maps = images
    for i, pools in enumerate((True, True, False, False, True), start=1):
        maps = F.relu(model.get_submodule(f"conv_{i}")(maps))
        maps = F.max_pool2d(maps, 2) if pools else maps
    hidden = F.relu(model.get_submodule("fc_1")(maps.flatten(1)))
    expected = model.get_submodule("output")(F.relu(model.get_submodule("fc_2")(hidden)))
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (4, 10)
    weight = model.get_parameter("conv_2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_an_epoch_runs(algorithm: str) -> None:
    split = Split(torch.randn(12, 3, 32, 32), torch.arange(12) % 10)
    task = get_task(small(), batch_size=4, epochs=1, warmup_epochs=0)
    trainer = Trainer(task, algorithm=algorithm, splits=Splits(split, split, split))
    report = trainer.run_epoch()
    assert trainer.diverged is None
    assert report["val_loss"] > 0
    if algorithm == "fixed":
        assert report["cost"] == 1  # augmentation is not counted
