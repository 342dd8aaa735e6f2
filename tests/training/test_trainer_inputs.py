"""Inputs and targets in containers, and data sets of torch: a run is the one on the same tensors alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from tune_stn.data import DatasetSplit, Split, Splits
from tune_stn.space import LogUniform, SearchSpace, Uniform
from tune_stn.tasks import Task
from tune_stn.training import Trainer


class Network(nn.Module):
    """Two layers, called with a tensor, or with it in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(36, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))

    def forward(self, x: Any, scale: Tensor | None = None) -> Any:
        if isinstance(x, dict):
            x = x["whole"]
        if isinstance(x, (tuple, list)):
            x = torch.cat(list(x), 1)
        return self.layers(x if scale is None else x * scale[:, None])


class Nested(Network):
    def forward(self, x: Any, scale: Tensor | None = None) -> Any:
        return {"logits": super().forward(x, scale)}


class Columns:
    """Examples as mappings, with the target among them."""

    def __init__(self, split: Any) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.split.inputs[index], "scale": torch.ones(()), "y": self.split.targets[index]}


def halves(inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs[:, :18], inputs[:, 18:]


def loss_of_nested(outputs: Any, targets: Any) -> Tensor:
    return F.cross_entropy(outputs["logits"], targets["class"])


FORMS: dict[str, Any] = {
    "tuple": lambda split: Split(halves(split.inputs), split.targets),
    "dict as it is": lambda split: Split({"whole": split.inputs}, split.targets),
    "by name": lambda split: Split({"x": split.inputs, "scale": torch.ones(len(split))}, split.targets),
    "data set": lambda split: TensorDataset(split.inputs, split.targets),
    "columns by name": lambda split: DatasetSplit(Columns(split), target="y"),
    "targets and outputs": lambda split: Split(split.inputs, {"class": split.targets}),
}


@pytest.fixture(scope="module")
def runs() -> dict[str, Trainer]:
    """By algorithm, the run on plain tensors."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn", "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_is_that_on_plain_tensors_to_the_last_bit(
    make_task: Any, differences: Any, runs: dict[str, Trainer], form: str, algorithm: str
) -> None:
    space = SearchSpace({"dropout": Uniform(0.0, 0.9), "decay": LogUniform(1e-6, 1e-1)})
    plain = make_task(
        model=Network, space=space, start={"dropout": 0.2, "decay": 1e-3}, dropout={"layers.2": "dropout"},
        augmentations=(), metrics={}, accumulate=2, epochs=2,
    )  # fmt: skip

    def data(seed: int) -> Splits:
        splits = plain.data(seed)
        return Splits(*(FORMS[form](split) for split in (splits.train, splits.valid, splits.test)))

    other = replace(plain, data=data)
    if form == "targets and outputs":
        other = replace(other, model=Nested, loss=loss_of_nested)

    def run(task: Task) -> Trainer:
        trainer = Trainer(task, algorithm=algorithm)
        for _ in range(2):
            trainer.run_epoch()
        return trainer

    if algorithm not in runs:
        runs[algorithm] = run(plain)
    assert differences(runs[algorithm], run(other)) == []


def test_an_input_that_the_network_does_not_take_is_named(make_task: Any) -> None:
    task = make_task(
        model=Network, dropout={"layers.2": "dropout"}, augmentations=(), metrics={},
        space=SearchSpace({"dropout": Uniform(0.0, 0.9), "decay": LogUniform(1e-6, 1e-1)}),
        start={"dropout": 0.2, "decay": 1e-3},
    )  # fmt: skip
    split = Split({"x": torch.randn(9, 36), "mask": torch.ones(9)}, torch.zeros(9, dtype=torch.long))
    with pytest.raises(TypeError, match=r"forward of Network has no argument 'mask': leave it out.* takes scale, x"):
        Trainer(replace(task, data=lambda seed: Splits(split, split, split)))
