"""What the tasks on CIFAR-10 share; what needs the real images is skipped where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tune_stn.data import cifar10
from tune_stn.data.source import DataError
from tune_stn.data.splits import Split
from tune_stn.tasks import Task, get_task
from tune_stn.tasks.cifar10 import MEAN, STD

REAL = os.environ.get("TUNE_STN_CIFAR10")
needs_data = pytest.mark.skipif(REAL is None, reason="needs the real data: set TUNE_STN_CIFAR10 to its folder")
each_task = pytest.mark.parametrize("name", ["cifar10-alexnet", "cifar10-vgg16", "cifar10-resnet18"])


def small(name: str) -> Task:
    return get_task(name, train_images=300, valid_images=200, test_images=100, width=2, data_dir=REAL)


@each_task
@needs_data
def test_images_are_normalised_and_split_by_the_seed(name: str) -> None:
    task = small(name)
    splits = task.data(0)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [300, 200, 100]
    for split in (splits.train, splits.valid, splits.test):
        assert isinstance(split, Split)
        assert split.inputs.dtype == torch.uint8  # in memory
        (batch,) = split.whole(300)
        assert batch.inputs.shape == (len(split), 3, 32, 32)
        assert batch.inputs.dtype == torch.float32
        assert batch.targets.dtype == torch.int64
    (train,), (test,) = splits.train.whole(300), splits.test.whole(300)
    torch.testing.assert_close(train.inputs.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=0.15)
    torch.testing.assert_close(train.inputs.std((0, 2, 3)), torch.ones(3), rtol=0, atol=0.15)
    (other,) = task.data(1).train.whole(300)
    assert not torch.equal(other.targets, train.targets)
    _, official = cifar10.load(REAL)
    pixels = (test.inputs * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    assert torch.equal(pixels.round().to(torch.uint8), official.inputs[:100])


@needs_data
def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="test_images=10001: accepted is 1 to 10000"):
        get_task("cifar10-alexnet", test_images=10_001, data_dir=REAL).data(0)


@each_task
def test_a_folder_without_data_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR-10 not found in .*tune-stn data cifar10"):
        get_task(name, data_dir=str(tmp_path)).data(0)
