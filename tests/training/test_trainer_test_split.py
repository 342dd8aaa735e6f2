"""The test split is evaluated where its figures are used, and nothing else depends on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from torch import Tensor

from tune_stn.study.incumbent import best_so_far
from tune_stn.training import Trainer, load_state, save_state

Differences = Callable[[Trainer, Trainer], list[str]]
ALGORITHMS = ("fixed", "stn", "delta-stn", "auto")


def with_losses(trainer: Trainer, losses: Sequence[float]) -> Trainer:
    """Its evaluations say these validation losses, one an epoch, those that it trains anew included."""
    evaluate, given = trainer._evaluate, iter(losses)

    def evaluated(*splits: Literal["val", "test"]) -> dict[str, float]:
        return evaluate(*splits) | ({"val_loss": next(given)} if "val" in splits else {})

    trainer._evaluate = evaluated  # type: ignore[method-assign]
    return trainer


def looked_at(reports: Sequence[dict[str, float]]) -> list[int]:
    """The epochs whose reports have figures of the test split; they have all of them or none."""
    for report in reports:
        assert math.isnan(report["test_loss"]) == math.isnan(report["test_accuracy"])
    return [int(report["epoch"]) for report in reports if not math.isnan(report["test_loss"])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "settings", "expected"),
    [
        ([3.0, 2.0, 2.5, 1.0, 4.0, 5.0], {}, [1, 2, 4]),
        ([3.0, 2.0, 2.5, 1.0, 4.0, 5.0], {"epochs": 6}, [1, 2, 4, 6]),
        ([3.0, 3.0, 3.0], {}, [1]),  # as good is not better
        ([1.0, 2.0, 3.0], {"patience": 2}, [1, 3]),
        ([1.0, 2.0, math.nan], {"restarts": 0}, [1, 3]),  # it ends with that
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], {"test_every": 3}, [1, 3, 6]),
        ([1.0, 2.0, 3.0], {"test_every": 1}, [1, 2, 3]),
        # Epochs 2 and 3 go wrong and are trained anew; the 0.5 of the second is in no report, the 0.8 is the best one.
        ([1.0, 11.0, math.nan, 0.5, 0.8, 0.9, 0.7], {}, [1, 3, 5]),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_where_the_loss_is_the_least_reported_and_at_the_end(
    make_task: Any, losses: list[float], settings: dict[str, Any], expected: list[int], resumed: bool, tmp_path: Path
) -> None:
    task = make_task(**{"epochs": 50, "test_every": 0} | settings)
    trainer = with_losses(Trainer(task, algorithm="fixed"), losses)
    reports = []
    while len(reports) < len(losses) - 2 * (0.5 in losses):
        reports.append(trainer.run_epoch())
        if resumed:
            save_state(trainer.state_dict(), tmp_path / "state.pt")
            evaluate, trainer = trainer._evaluate, Trainer(task, algorithm="fixed")
            trainer.load_state_dict(load_state(tmp_path / "state.pt"))
            trainer._evaluate = evaluate  # type: ignore[method-assign]
    assert looked_at(reports) == expected


def noise(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.rand(())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("network", ["mlp", "batch-norm"])
def test_training_and_the_best_so_far_are_those_of_a_run_that_always_looks(
    make_task: Any, differences: Differences, algorithm: str, network: str
) -> None:
    """Even where an evaluation draws, and whatever is drawn outside."""
    metrics = {"accuracy": make_task().metrics["accuracy"], "noise": noise}
    always, seldom = (
        Trainer(make_task(network, metrics=metrics, test_every=every, lr=0.1, epochs=12), algorithm=algorithm)
        for every in (1, 0)
    )
    torch.manual_seed(5)
    expected = [always.run_epoch() for _ in range(12)]
    after = torch.rand(())
    torch.manual_seed(5)
    reports = [seldom.run_epoch() for _ in range(12)]
    assert torch.equal(torch.rand(()), after)
    assert differences(always, seldom) == []
    assert 1 < len(looked_at(reports)) < 12 == len(looked_at(expected))
    for report, one in zip(reports, expected, strict=True):
        known = {key: value for key, value in report.items() if not math.isnan(value) and key != "device_time_s"}
        assert known.items() <= one.items()
        assert report.keys() == one.keys()
        assert all(key.startswith("test_") for key in report.keys() - known.keys() - {"device_time_s"})
    first, other = (
        best_so_far(
            pd.DataFrame(made).assign(
                **{"task": "t", "method": "m", "seed": 0, "trial_id": "a", "wall_time_s": 0.0},
                cost_total=lambda frame: frame["cost"],
                report_index=range(12),
            )
        )
        for made in (reports, expected)
    )
    pd.testing.assert_frame_equal(first, other, check_exact=True)
    assert first["test_loss_at_best"].notna().all()


def test_the_least_reported_loss_of_an_earlier_checkpoint_is_its_best(make_task: Any) -> None:
    """Earlier versions kept no other."""
    task = make_task(test_every=0, epochs=50)
    trainer = with_losses(Trainer(task, algorithm="fixed"), [2.0])
    trainer.run_epoch()
    state = {key: value for key, value in trainer.state_dict().items() if key != "least_reported"}
    again = with_losses(Trainer(task, algorithm="fixed"), [3.0, 1.0])
    again.load_state_dict(state)
    assert looked_at([again.run_epoch(), again.run_epoch()]) == [3]
