"""Built-in tasks as users run them."""

from __future__ import annotations

import numpy as np
import pytest

from tune_stn.tasks import get_task
from tune_stn.tasks.ridge import validation_loss
from tune_stn.training import Trainer

# The ridge task as users run it --------------------------------------------------------------------------------------


def run_ridge(algorithm: str, seed: int) -> tuple[float, float, float]:
    """Last validation loss, that of the best penalty of a grid, and that of the start."""
    trainer = Trainer(get_task("ridge"), algorithm=algorithm, seed=seed)
    for _ in range(trainer.task.training.epochs):
        report = trainer.run_epoch()
    best = min(validation_loss(trainer.splits, float(penalty)) for penalty in np.geomspace(1e-3, 1e1, 200))
    return report["val_loss"], best, validation_loss(trainer.splits, trainer.task.start["penalty"])


@pytest.mark.parametrize("seed", [0, 1])
def test_delta_stn_ends_within_one_percent_of_the_best_penalty(seed: int) -> None:
    found, best, at_start = run_ridge("delta-stn", seed)
    assert at_start > 1.03 * best
    assert best * 0.99 < found < best * 1.01


def test_stn_ends_near_the_best_penalty() -> None:
    """Its weights are an average over the perturbation, so they stay a little off the exact minimiser."""
    found, best, at_start = run_ridge("stn", 0)
    assert abs(found - best) < 0.5 * (at_start - best)
