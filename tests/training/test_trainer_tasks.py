"""Built-in tasks as users run them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tune_stn.data import fashion_mnist
from tune_stn.data.source import DataError
from tune_stn.data.splits import Splits
from tune_stn.tasks import Task, get_task
from tune_stn.tasks.ridge import validation_loss
from tune_stn.training import Trainer


def run_ridge(algorithm: str, seed: int) -> tuple[float, float, float]:
    """Last validation loss, that of the best penalty of a grid, and that of the start."""
    trainer = Trainer(get_task("ridge"), algorithm=algorithm, seed=seed)
    for _ in range(trainer.task.training.epochs):
        report = trainer.run_epoch()
    best = min(validation_loss(trainer.splits, float(penalty)) for penalty in np.geomspace(1e-3, 1e1, 200))
    return report["val_loss"], best, validation_loss(trainer.splits, trainer.task.start["penalty"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_delta_stn_ends_within_one_percent_of_the_best_penalty(seed: int) -> None:
    found, best, at_start = run_ridge("delta-stn", seed)
    assert at_start > 1.03 * best
    assert best * 0.99 < found < best * 1.01


@pytest.mark.slow
def test_stn_ends_near_the_best_penalty() -> None:
    """Its weights are an average over the perturbation, so they stay a little off the exact minimiser."""
    found, best, at_start = run_ridge("stn", 0)
    assert abs(found - best) < 0.5 * (at_start - best)


# Start values -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion() -> tuple[Task, Splits]:
    """A narrow MLP on few images, at the task's own learning rates."""
    try:
        fashion_mnist.find()
    except DataError:
        pytest.skip("needs the real data: apt-get install dataset-fashion-mnist")
    task = get_task(
        "fashion-mnist-mlp", train_images=1000, valid_images=500, test_images=100, hidden=200, warmup_epochs=1
    )
    return task, task.data(0)


# As shares of the domains: [0, .95] of the dropouts on input and two hidden layers, [0, 1] of the input scale.
STARTS = {
    "all at the lower end": (0, 0, 0, 0),
    "all at the upper end": (1, 1, 1, 1),
    "all in the middle": (0.5, 0.5, 0.5, 0.5),
    "one": (1, 0, 0, 0),
    "two": (0, 1, 0, 0),
    "three": (0, 0, 1, 0),
    "four": (0, 0, 0, 1),
    "every other": (1, 0, 1, 0),
    "mixed": (0.1, 0.9, 0.5, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "algorithm"),
    # The ends with both rules, what lies between by turns.
    [
        *((name, rule) for name in ("all at the lower end", "all at the upper end") for rule in ("stn", "delta-stn")),
        *((name, ("stn", "delta-stn")[i % 2]) for i, name in enumerate(list(STARTS)[2:])),
    ],
)
def test_no_start_value_makes_a_run_diverge(fashion: tuple[Task, Splits], name: str, algorithm: str) -> None:
    """Ten epochs with hyper-steps in nine: nothing restarts, and no loss is above that of guessing by a tenth."""
    task, splits = fashion
    tops = {"dropout_input": 0.95, "dropout_1": 0.95, "dropout_2": 0.95, "input_scale": 1.0}
    start = {name: share * top for (name, top), share in zip(tops.items(), STARTS[name], strict=True)}
    trainer = Trainer(task, algorithm=algorithm, hp=start, splits=splits)
    losses = [trainer.run_epoch()["val_loss"] for _ in range(10)]
    assert trainer.diverged is None
    assert trainer.restarts == 0
    assert max(losses) < math.log(10) + 0.1
    assert min(losses) == pytest.approx(losses[-1], rel=0.05)
