"""The Delta-STN paper's VGG16; on random images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune_stn.data.splits import Split, Splits
from tune_stn.space import Integer, Uniform
from tune_stn.tasks import get_task
from tune_stn.training import Trainer


def test_twenty_six_hyperparameters_with_the_domains_and_starts_of_the_authors_code() -> None:
    task = get_task("cifar10-vgg16")
    assert len(task.space) == 26
    dropouts = [name for name in task.space if name.startswith("dropout")]
    assert len(dropouts) == 16
    assert all(task.space[name] == Uniform(0, 0.95) for name in dropouts)
    assert {task.space[name] for name in ("rotation", "shear")} == {Uniform(0, 45)}
    assert {task.space[name] for name in ("translation", "scale", "hue")} == {Uniform(0, 0.5)}
    assert (task.space["cutout_length"], task.space["cutout_holes"]) == (Integer(2, 24), Integer(0, 5))
    others = {"rotation": 5, "shear": 5, "cutout_length": 4, "cutout_holes": 1}
    assert dict(task.start) == {**dict.fromkeys(task.space, 0.05), **others}


def test_full_size_is_the_papers_network() -> None:
    with torch.device("meta"):
        model = get_task("cifar10-vgg16").model()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [conv.out_channels for conv in convs] == [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert [linear.out_features for linear in linears] == [512, 512, 10]
    whole_channels = {path for path, module in model.named_modules() if isinstance(module, nn.Dropout2d)}
    assert whole_channels == {f"dropout_{i}" for i in range(14)}
    units = {path for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert whole_channels | units == set(get_task("cifar10-vgg16").dropout)


def test_network_is_the_plain_one_written_out() -> None:
    torch.manual_seed(0)
    model = get_task("cifar10-vgg16", width=2).model().eval()
    images = torch.randn(4, 3, 32, 32)
    maps = images
    for i in range(1, 14):
        maps = F.relu(model.get_submodule(f"conv_{i}")(maps))
        if i in (2, 4, 7, 10, 13):
            maps = F.max_pool2d(maps, 2)
    hidden = F.relu(model.get_submodule("fc_1")(maps.flatten(1)))
    expected = model.get_submodule("output")(F.relu(model.get_submodule("fc_2")(hidden)))
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (4, 10)


@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_an_epoch_runs(algorithm: str) -> None:
    split = Split(torch.randn(12, 3, 32, 32), torch.arange(12) % 10)
    task = get_task("cifar10-vgg16", width=2, batch_size=4, epochs=1, warmup_epochs=0)
    trainer = Trainer(task, algorithm=algorithm, splits=Splits(split, split, split))
    report = trainer.run_epoch()
    assert trainer.diverged is None
    assert report["val_loss"] > 0
