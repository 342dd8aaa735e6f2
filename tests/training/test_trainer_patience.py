"""The end of patience, and the way back to the best epoch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tune_stn.space import Tunable
from tune_stn.training import Trainer, load_state, save_state


def with_losses(trainer: Trainer, losses: list[float]) -> Trainer:
    """Its evaluations say these validation losses, one an epoch."""
    evaluate, given = trainer._evaluate, iter(losses)

    def evaluated(*splits: Literal["val", "test"]) -> dict[str, float]:
        return evaluate(*splits) | ({"val_loss": next(given)} if "val" in splits else {})

    trainer._evaluate = evaluated  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize(
    ("losses", "patience", "ends_after"),
    [
        ([1.0, 1.1, 1.2, 1.3], 2, 3),
        ([1.0, 0.9, 1.0, 0.95, 0.89, 1.0, 0.89, 1.0], 2, 4),
        ([1.0, 1.0, 1.0], 1, 2),  # as good is not better
        ([3.0, 2.0, 1.0], 1, None),
    ],
)
def test_patience_is_counted_from_the_best_epoch(
    make_task: Any, losses: list[float], patience: int, ends_after: int | None
) -> None:
    trainer = with_losses(Trainer(make_task(patience=patience, epochs=50), algorithm="fixed"), losses)
    ended = None
    for epoch in range(1, len(losses) + 1):
        trainer.run_epoch()
        if trainer.finished:
            ended = epoch
            break
    assert ended == ends_after
    if ended is not None:
        best = losses.index(min(losses[:ended])) + 1
        assert trainer.best_epoch == best
        assert trainer.finished == f"no better validation loss in {patience} epochs than that of epoch {best}"


def test_without_patience_a_run_ends_with_its_epochs(make_task: Any) -> None:
    trainer = with_losses(Trainer(make_task(epochs=3), algorithm="fixed"), [1.0, 2.0, 3.0])
    for _ in range(3):
        assert trainer.finished == ""
        trainer.run_epoch()
    assert trainer.finished == "3 epochs are done"


def test_a_diverged_run_is_finished(make_task: Any) -> None:
    trainer = with_losses(Trainer(make_task(restarts=0), algorithm="fixed"), [math.nan])
    trainer.run_epoch()
    assert trainer.finished == trainer.diverged
    assert trainer.best_epoch == 0


@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_best_epoch_comes_back_with_its_hyperparameters(
    make_task: Any, algorithm: str, resumed: bool, tmp_path: Path
) -> None:
    """The authors' code goes back to the best weights, but keeps the last hyperparameters."""
    task = make_task(keep_best=True, warmup_epochs=0, train_steps=1)
    trainer = with_losses(Trainer(task, algorithm=algorithm), [3.0, 1.0, 2.0, 2.0])
    states, reports = [], []
    for _ in range(4):
        reports.append(trainer.run_epoch())
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    if resumed:
        save_state(trainer.state_dict(), tmp_path / "state.pt")
        trainer = Trainer(task, algorithm=algorithm)
        trainer.load_state_dict(load_state(tmp_path / "state.pt"))
    else:
        del trainer._evaluate  # the real one again
    report = trainer.restore_best()
    assert all(torch.equal(value, states[1][name]) for name, value in trainer.model.state_dict().items())
    assert not all(torch.equal(value, states[3][name]) for name, value in trainer.model.state_dict().items())
    if isinstance(trainer.model.hyper, Tunable):
        assert not torch.equal(trainer.model.hyper.raw, states[3]["hyper.raw"])
    assert report["test_loss"] == reports[1]["test_loss"]
    assert {name: value for name, value in report.items() if name != "val_loss"}.items() <= reports[1].items()


def test_where_nothing_was_kept_it_says_why(make_task: Any) -> None:
    trainer = Trainer(make_task(), algorithm="fixed")
    trainer.run_epoch()
    with pytest.raises(RuntimeError, match="its training has keep_best=False"):
        trainer.restore_best()
    with pytest.raises(RuntimeError, match="no epoch was good"):
        Trainer(make_task(keep_best=True), algorithm="fixed").restore_best()


def test_what_is_kept_does_not_change_while_training_goes_on(make_task: Any) -> None:
    trainer = with_losses(Trainer(make_task(keep_best=True), algorithm="stn"), [1.0, 2.0])
    trainer.run_epoch()
    assert trainer._best.model is not None
    before = {name: value.clone() for name, value in trainer._best.model.items()}
    trainer.run_epoch()
    assert all(torch.equal(value, before[name]) for name, value in trainer._best.model.items())
