"""The digits: sizes, disjoint splits by the seed, and something to learn."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tune_stn.data.source import DataError
from tune_stn.tasks import get_task


def test_shapes_and_sizes() -> None:
    task = get_task("digits-mlp", train_images=100, valid_images=200, hidden=16)
    splits = task.data(0)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [100, 200, 1797 - 300]
    assert splits.train.inputs.shape == (100, 64)
    assert splits.train.inputs.dtype == torch.float32
    assert splits.train.targets.dtype == torch.int64
    outputs = task.model()(splits.train.inputs)
    assert outputs.shape == (100, 10)
    assert F.cross_entropy(outputs, splits.train.targets).item() < 5
    assert task.model().get_parameter("1.weight").shape == (16, 64)


def test_the_images_are_those_of_scikit_learn() -> None:
    """They are read from its file, without the time that its import takes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = torch.tensor(bunch.data, dtype=torch.float32) / 16 - 0.3
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(3))
    splits = get_task("digits-mlp").data(3)
    found = torch.cat([splits.train.inputs, splits.valid.inputs, splits.test.inputs])
    assert torch.equal(found, expected[order])
    targets = torch.cat([splits.train.targets, splits.valid.targets, splits.test.targets])
    assert torch.equal(targets, torch.tensor(bunch.target)[order])


@pytest.mark.parametrize("is_installed", [False, True])
def test_where_scikit_learn_or_its_file_is_missing_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_installed: bool
) -> None:
    spec = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py")) if is_installed else None
    monkeypatch.setattr("tune_stn.tasks.digits_mlp.find_spec", lambda name: spec)
    what = "digits.csv.gz is missing" if is_installed else "that is not installed"
    with pytest.raises(DataError, match=f"inside scikit-learn, and .*{what}; `pip install scikit-learn`"):
        get_task("digits-mlp").data(0)


def test_splits_follow_the_seed_and_share_no_image() -> None:
    task = get_task("digits-mlp")
    splits = task.data(0)
    images = torch.cat([splits.train.inputs, splits.valid.inputs, splits.test.inputs])
    targets = torch.cat([splits.train.targets, splits.valid.targets, splits.test.targets])
    assert len(images) == 1797
    assert sorted(targets.unique().tolist()) == list(range(10))  # type: ignore[no-untyped-call]
    assert images.unique(dim=0).shape[0] == 1797  # type: ignore[no-untyped-call]
    assert torch.equal(task.data(0).train.inputs, splits.train.inputs)
    assert not torch.equal(task.data(1).train.inputs, splits.train.inputs)


def test_pixels_are_near_zero_mean() -> None:
    inputs = get_task("digits-mlp").data(0).train.inputs
    assert abs(float(inputs.mean())) < 0.05
    assert float(inputs.min()) >= -0.3 - 1e-6
    assert float(inputs.max()) <= 0.7 + 1e-6


@pytest.mark.parametrize(("train", "valid"), [(1500, 297), (1500, 400)])
def test_sizes_that_leave_a_split_empty_are_refused_before_anything_is_loaded(train: int, valid: int) -> None:
    with pytest.raises(ValueError, match=f"train_images={train}, valid_images={valid}: .* fewer than 1797 together"):
        get_task("digits-mlp", train_images=train, valid_images=valid)


@pytest.mark.parametrize(("name", "size"), [("train_images", 0), ("valid_images", -5), ("hidden", 0)])
def test_sizes_are_of_one_or_more(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={size}: accepted is an integer of 1 or more"):
        get_task("digits-mlp", **{name: size})


def test_one_image_is_enough_for_the_test_split() -> None:
    assert len(get_task("digits-mlp", train_images=1500, valid_images=296).data(0).test) == 1


def test_it_learns_in_a_few_steps() -> None:
    task = get_task("digits-mlp")
    torch.manual_seed(0)
    model = task.model().eval()
    train, valid = task.data(0).train, task.data(0).valid
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # whatever the task's own is tuned to
    for _ in range(80):
        optimizer.zero_grad()
        task.loss(model(train.inputs), train.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(task.metrics["accuracy"](model(valid.inputs), valid.targets)) > 0.8
