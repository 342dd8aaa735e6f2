"""Fashion-MNIST as tasks; what needs the real images is skipped where they are absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune_stn.data import fashion_mnist
from tune_stn.data.source import DataError
from tune_stn.data.splits import Split
from tune_stn.tasks import Task, get_task
from tune_stn.tasks.fashion_mnist import SimpleCNN

NAMES = ["fashion-mnist-mlp", "fashion-mnist-cnn"]
each_task = pytest.mark.parametrize("name", NAMES)


def has_data() -> bool:
    try:
        fashion_mnist.find()
    except DataError:
        return False
    return True


needs_data = pytest.mark.skipif(not has_data(), reason="needs the real data: apt-get install dataset-fashion-mnist")


def small(name: str) -> Task:
    return get_task(name, train_images=300, valid_images=200, test_images=100, hidden=16)


@pytest.mark.slow
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
        assert batch.inputs.shape == (len(split), 1, 28, 28)
        assert batch.inputs.dtype == torch.float32
        assert batch.targets.dtype == torch.int64
    (train,), (valid,), (test,) = (split.whole(300) for split in (splits.train, splits.valid, splits.test))
    assert float(train.inputs.mean()) == pytest.approx(0, abs=0.1)
    assert float(train.inputs.std()) == pytest.approx(1, abs=0.1)
    both = torch.cat([train.inputs, valid.inputs]).flatten(1)
    assert both.unique(dim=0).shape[0] == 500  # type: ignore[no-untyped-call]
    other = task.data(1)
    assert not torch.equal(next(other.train.whole(300)).targets, train.targets)
    assert torch.equal(next(other.test.whole(300)).inputs, test.inputs)  # the official test set is nobody's choice


@needs_data
def test_test_images_are_the_first_of_the_official_ones() -> None:
    _, official = fashion_mnist.load()
    (test,) = small(NAMES[0]).data(0).test.whole(100)
    assert torch.equal(test.targets, official.targets[:100])
    pixels = (test.inputs[:, 0] * 0.3530 + 0.2860) * 255
    assert torch.equal(pixels.round().to(torch.uint8), official.inputs[:100])


@needs_data
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_images": 10_001}, "test_images=10001: accepted is 1 to 10000"),
        ({"test_images": 0}, "test_images=0: accepted is an integer of 1 or more"),
        (
            {"train_images": 60_000, "valid_images": 1},
            "they ask for 60001 examples, but there are 60000",
        ),
        ({"train_images": 0}, "train_images=0: accepted is an integer of 1 or more"),
    ],
)
def test_more_images_than_there_are_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_task(NAMES[0], **settings).data(0)


@each_task
def test_model_takes_the_images(name: str) -> None:
    task = small(name)
    model = task.model()
    outputs = model(torch.randn(3, 1, 28, 28))
    assert outputs.shape == (3, 10)
    dropouts = {path for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert set(task.dropout) == dropouts  # each is tuned
    assert {name for name in task.space if name.startswith("dropout")} == set(task.dropout.values())


def test_cnn_is_the_same_with_pooling_after_the_relu() -> None:
    """The order in the file saves work; the paper's is the usual one."""
    torch.manual_seed(0)
    model = SimpleCNN(16).eval()
    images = torch.randn(4, 1, 28, 28)
    hidden = F.max_pool2d(F.relu(model.conv_1(images)), 2)
    hidden = F.max_pool2d(F.relu(model.conv_2(hidden)), 2)
    expected = model.output(F.relu(model.fc(hidden.flatten(1))))
    assert torch.equal(model(images), expected)


@each_task
def test_a_folder_without_data_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Fashion-MNIST not found in .*apt-get install dataset-fashion-mnist"):
        get_task(name, data_dir=str(tmp_path)).data(0)
