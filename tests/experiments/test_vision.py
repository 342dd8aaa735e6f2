"""The scripts on the image tasks run; those on CIFAR-10 where its images are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_stn.data import fashion_mnist
from tune_stn.data.source import DataError

RunScript = Callable[..., None]
CIFAR10 = os.environ.get("TUNE_STN_CIFAR10")


def has_fashion_mnist() -> bool:
    try:
        fashion_mnist.find()
    except DataError:
        return False
    return True


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(CIFAR10 is None, reason="needs the real data: set TUNE_STN_CIFAR10 to its folder")
def test_cifar10_tuning(run_script: RunScript, tmp_path: Path) -> None:
    arguments = ["--smoke-test", "--methods", "stn,random", "--data-dir", str(CIFAR10)]
    run_script("cifar10_tuning.py", *arguments, "--out", str(tmp_path), "--results", str(tmp_path / "results"))
    folder = tmp_path / "results" / "cifar10-alexnet-smoke"
    table = pd.read_csv(folder / "table.csv")
    assert set(table["method"]) == {"stn", "random"}
    assert table["val_accuracy"].between(0, 1).all()
    assert pd.read_parquet(folder / "schedules.parquet")["hp"].nunique() == 15
    assert str(CIFAR10) not in (folder / "study.json").read_text()


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not has_fashion_mnist(), reason="needs the real data: apt-get install dataset-fashion-mnist")
def test_delta_stn(run_script: RunScript, tmp_path: Path) -> None:
    arguments = ["--smoke-test", "--task", "fashion-mnist-mlp", "--methods", "delta-stn"]
    run_script("delta_stn.py", *arguments, "--out", str(tmp_path), "--results", str(tmp_path / "results"))
    folder = tmp_path / "results" / "fashion-mnist-mlp-smoke"
    table = pd.read_csv(folder / "table.csv").set_index("method")
    assert set(table.index) == {"delta-stn"}
    assert table["val_accuracy"].between(0, 1).all()
    assert (folder / "best_so_far.png").exists()


def test_vision_cost(run_script: RunScript, tmp_path: Path) -> None:
    run_script("vision_cost.py", "--smoke-test", "--networks", "fashion-mnist-cnn", "--results", str(tmp_path))
    steps = pd.read_csv(tmp_path / "cpu-steps.csv").set_index("algorithm")
    assert steps.loc["fixed", "operations"] < steps.loc["stn", "operations"] < steps.loc["delta-stn", "operations"]
    assert (steps["images_per_second"] > 0).all()
    epochs = pd.read_csv(tmp_path / "cpu-epochs.csv").set_index("algorithm")
    assert epochs["seconds"].gt(0).all()
    shares = epochs[["share_of_data", "share_of_augmentation"]]
    assert shares.gt(0).all(axis=None)
    assert shares.sum(axis=1).lt(1).all()
