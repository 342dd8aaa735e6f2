"""Trials as Ray Tune's callbacks see them, and reports as `STNTrainable` makes them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem


@pytest.fixture
def fake_trial() -> Callable[..., Any]:
    """`fake_trial("a", checkpoint_of="b")`: a trial whose folder is `dir-a`, to go on from a checkpoint in `dir-b`."""

    def make(name: str, status: str = "RUNNING", *, checkpoint_of: str = "", number: int = 0, **more: Any) -> Any:
        path = f"/storage/run/dir-{checkpoint_of}/checkpoint_{number:06d}"
        attributes: dict[str, Any] = {
            **{"trial_id": name, "status": status, "relative_logdir": f"dir-{name}", "trainable_name": "theirs"},
            **{"config": {}, "last_result": {}, "error_file": None, "path": f"/storage/run/dir-{name}"},
            "checkpoint": SimpleNamespace(path=path, filesystem=LocalFileSystem()) if checkpoint_of else None,
            "latest_checkpoint_result": None,
        }
        return SimpleNamespace(**attributes | more)

    return make


@pytest.fixture
def own_result() -> Callable[..., dict[str, Any]]:
    """As `STNTrainable.step` gives it, with some of what Tune adds; `cost` is of this epoch."""

    def make(epoch: int, *, cost: float = 1.5, seconds: float = 0.25, **more: Any) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "step": 8 * epoch,
            "cost": 100.0 + epoch,  # as of a copied checkpoint: includes what another trial spent
            "cost_increment": cost,
            "device_time_s": 50.0,
            "device_time_increment_s": seconds,
            "train_loss": 1.0,
            "val_loss": 2.0,
            "test_loss": 3.0,
            "val_accuracy": 0.5,
            "hp/dropout": 0.1,
            "scale/dropout": 0.5,
            "parent_trial_id": "",
            "segment": "",
            "status": "running",
            "reason": "",
            "time_total_s": 9.0,
            "training_iteration": epoch,
            "config": {"hp": {"dropout": 0.3}},
        } | more

    return make
