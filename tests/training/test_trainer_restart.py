"""A run that diverges goes back to its last good epoch, and on from there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from tune_stn.data.batches import Batch
from tune_stn.tasks import get_task
from tune_stn.training import Trainer, load_state, save_state
from tune_stn.training.divergence import MOST_LOST

Differences = Callable[[Trainer, Trainer], list[str]]
ALGORITHMS = ("fixed", "stn", "delta-stn", "progress-ratio", "auto")
EVEN = ALGORITHMS[:3]  # whose epochs all cost alike: the others measure now and then
NETWORKS = ("mlp", "batch-norm")


def spoil(trainer: Trainer, when: Mapping[tuple[int, int], float]) -> Trainer:
    """Multiply all base weights at the end of an epoch: `(epochs completed before it, restarts before it)` -> factor.

    What happens depends on the trainer's state alone, as a true divergence does, so it survives a resume.
    """
    train = trainer._train

    def spoiled() -> Tensor:
        loss = train()
        for parameter in trainer.stepper.parameters("base"):
            parameter.data.mul_(when.get((trainer.epoch, trainer.restarts), 1.0))
        return loss

    trainer._train = spoiled  # type: ignore[method-assign]
    return trainer


def comparable(report: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in report.items() if key != "device_time_s"}


ONCE = {(1, 0): math.nan}
TWICE = {(1, 0): math.nan, (1, 1): math.inf}
# Ten thousand times the weights: the loss is large and finite. The next epoch then diverges for good.
EXPLODING = {(1, 0): 1e4, (2, 0): math.nan}


# Going back ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reports_go_on_as_if_nothing_had_happened_but_the_cost(make_task: Any, algorithm: str, network: str) -> None:
    plain = Trainer(make_task(network), algorithm=algorithm)
    trainer = spoil(Trainer(make_task(network), algorithm=algorithm), ONCE)
    reasons, reports, expected = [], [], []
    for _ in range(4):
        reports.append(trainer.run_epoch())
        expected.append(plain.run_epoch())
        reasons.append(trainer.restarted)
    assert all(list(report) == list(expected[0]) for report in reports)
    assert all(math.isfinite(value) for report in reports for value in report.values())
    for key in ("epoch", "step"):
        assert [report[key] for report in reports] == [report[key] for report in expected]
    assert reasons[1] is not None
    assert [reasons[0], *reasons[2:]] == [None] * 3  # said once
    assert "validation loss became nan in epoch 2; went back to the end of epoch 1, with 0.5 of" in reasons[1]
    assert trainer.diverged is None
    assert comparable(reports[0]) == comparable(expected[0])
    assert reports[1]["val_loss"] != expected[1]["val_loss"]  # fresh noise, smaller steps
    # The lost epoch had been paid for. It leaves no trace in the schedule.
    spent = [report["cost"] for report in expected]
    lost = spent[1] - spent[0]
    assert [r["cost"] for r in reports] == pytest.approx([spent[0], *(cost + lost for cost in spent[1:])])
    assert reports[0]["device_time_s"] < reports[1]["device_time_s"]
    assert trainer.schedule.steps == plain.schedule.steps
    assert trainer.schedule.epochs == plain.schedule.epochs


@pytest.mark.parametrize(
    ("losses", "trained"),
    [
        ((1.0, math.nan), (2, 2)),
        ((1.0, 11.0, math.nan), (3, 2, 3)),
        ((1.0, 11.0, 12.0, math.nan), (4, 2, 3, 4)),
        ((1.0, 11.0, 12.0, 13.0), (4, 2, 3, 4)),  # finite, but there is nothing to wait for
        ((1.0, 11.0, 13.0, 12.0, math.nan), (5, 5)),  # high, but it does not grow
        ((1.0, 11.0, 12.0, 2.0, 11.0, math.nan), (6, 5, 6)),
    ],
)
def test_few_epochs_are_trained_anew_within_a_report(
    make_task: Any, losses: tuple[float, ...], trained: tuple[int, ...]
) -> None:
    """However long the loss is high before the run diverges: a budget and a scheduler wait for each report."""
    trainer = Trainer(make_task(epochs=12), algorithm="fixed")
    epochs, evaluate, run = [], trainer._evaluate, trainer._run_epoch

    def evaluated(*splits: Literal["val", "test"]) -> dict[str, float]:
        given = "val" in splits and not trainer.restarts
        return evaluate(*splits) | ({"val_loss": losses[trainer.epoch - 1]} if given else {})

    def counted() -> Any:
        epochs.append(trainer.epoch + 1)
        return run()

    trainer._evaluate, trainer._run_epoch = evaluated, counted  # type: ignore[method-assign]
    for epoch in range(1, len(losses) + 1):
        epochs.clear()
        assert trainer.run_epoch()["epoch"] == epoch
    assert trainer.restarts == 1
    assert trainer.diverged is None
    assert tuple(epochs) == trained
    assert len(trained) <= MOST_LOST + 1


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_that_was_learned_is_taken_back(
    make_task: Any, differences: Differences, algorithm: str, network: str
) -> None:
    """The epoch anew is, bit for bit, that of a run whose momentum was cleared at the end of the epoch before."""
    trainer = spoil(Trainer(make_task(network, train_steps=2), algorithm=algorithm), ONCE)
    for _ in range(2):
        trainer.run_epoch()
    expected = Trainer(make_task(network, train_steps=2), algorithm=algorithm)
    expected.run_epoch()
    expected.stepper.forget()
    expected._restarts.done = 1
    expected.run_epoch()
    assert differences(trainer, expected) == ["/cost/spent_flops"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "algorithm"),
    # What a restart adds to a state is none of the rule's: one goes through all, each other through a kept-back state.
    [(ONCE, "stn"), (TWICE, "stn"), *((EXPLODING, algorithm) for algorithm in ALGORITHMS)],
)
def test_restarted_run_resumes_bit_for_bit(
    make_task: Any, differences: Differences, tmp_path: Path, algorithm: str, when: Any
) -> None:
    """From checkpoints before, between and after: both parts of a kept-back state are in the file."""
    task = make_task("batch-norm", restarts=2, lr_schedule="StepLR", lr_schedule_args={"step_size": 2})

    def fresh() -> Trainer:
        return spoil(Trainer(task, algorithm=algorithm), when)

    whole, reports, epochs = fresh(), [], 4
    for epoch in range(epochs):
        save_state(whole.state_dict(), tmp_path / f"{epoch}.pt")
        reports.append((comparable(whole.run_epoch()), whole.restarted))
    assert whole.restarts == (2 if when is TWICE else 1)
    for killed in range(epochs):
        resumed = fresh()
        resumed.load_state_dict(load_state(tmp_path / f"{killed}.pt"))
        again = [(comparable(resumed.run_epoch()), resumed.restarted) for _ in range(killed, epochs)]
        assert again == reports[killed:]
        assert differences(whole, resumed) == []


@pytest.mark.parametrize("algorithm", EVEN)
@pytest.mark.parametrize(("when", "restarts"), [(ONCE, 0), (TWICE, 1)])
def test_a_run_out_of_restarts_ends(make_task: Any, algorithm: str, when: Any, restarts: int) -> None:
    trainer = spoil(Trainer(make_task(restarts=restarts), algorithm=algorithm), when)
    cost = trainer.run_epoch()["cost"]
    assert trainer.diverged is None
    report = trainer.run_epoch()
    assert report["val_loss"] == math.inf
    assert report["epoch"] == 2
    assert trainer.diverged is not None
    assert "the validation loss became nan in epoch 2" in trainer.diverged
    assert trainer.restarts == restarts
    assert report["cost"] == pytest.approx((2 + restarts) * cost, rel=0.3)


def test_first_epoch_goes_back_to_the_start(make_task: Any) -> None:
    trainer = spoil(Trainer(make_task(), algorithm="stn"), {(0, 0): math.nan})
    report = trainer.run_epoch()
    assert math.isfinite(report["val_loss"])
    assert trainer.restarted is not None
    assert "back to the end of epoch 0" in trainer.restarted
    assert trainer.schedule.sources[0] == "start"


def test_it_is_logged_once_with_task_and_seed(make_task: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer = spoil(Trainer(make_task(), algorithm="stn", seed=7), ONCE)
    with caplog.at_level(logging.WARNING, logger="tune_stn"):
        for _ in range(3):
            trainer.run_epoch()
    (record,) = caplog.records
    assert record.getMessage().startswith("tiny, seed 7: the validation loss became nan")


# States that are finite but no good ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", EVEN)
def test_an_exploding_state_is_nothing_to_go_back_to(make_task: Any, algorithm: str) -> None:
    trainer = spoil(Trainer(make_task(), algorithm=algorithm), EXPLODING)
    good, exploding = trainer.run_epoch(), trainer.run_epoch()
    assert 10 * good["val_loss"] < exploding["val_loss"] < math.inf
    assert trainer.restarted is None
    kept = trainer.state_dict()["last_good"]
    assert kept["epoch"] == 1
    assert exploding["cost"] == pytest.approx(2 * good["cost"], rel=0.3)
    report = trainer.run_epoch()
    assert report["epoch"] == 3
    assert report["val_loss"] < 10 * good["val_loss"]
    assert trainer.restarted is not None
    assert "became nan in epoch 3; went back to the end of epoch 1" in trainer.restarted
    # Epochs 2 and 3 twice each.
    assert report["cost"] == pytest.approx(5 * good["cost"], rel=0.3)
    assert trainer.state_dict()["last_good"] is None
    assert trainer.schedule.steps == sorted(set(trainer.schedule.steps))


def test_a_run_that_recovers_by_itself_is_good_again(make_task: Any) -> None:
    when = {(1, 0): 1e4, (2, 0): 1e-4, (4, 0): math.nan}
    trainer = spoil(Trainer(make_task(optimizer_args={}), algorithm="fixed"), when)
    held = []
    for _ in range(5):
        trainer.run_epoch()
        kept = trainer.state_dict()["last_good"]
        held.append(None if kept is None else kept["epoch"])
    assert held == [None, 1, None, None, None]
    assert trainer.restarted is not None
    assert "went back to the end of epoch 4" in trainer.restarted


def test_a_loss_that_falls_below_zero_does_not_explode(make_task: Any) -> None:
    """A log-likelihood does: its size grows tenfold and it is all the better."""
    losses = iter([1.0, 0.01, -5.0, -50.0])
    trainer = Trainer(make_task(), algorithm="fixed")
    trainer._evaluate = lambda *splits: (  # type: ignore[method-assign]
        {"val_loss": next(losses)} if "val" in splits else {"test_loss": 0.0}
    )
    for _ in range(4):
        trainer.run_epoch()
        assert trainer.state_dict()["last_good"] is None


def test_no_state_is_held_where_there_is_no_restart_left(make_task: Any) -> None:
    trainer = spoil(Trainer(make_task(restarts=0), algorithm="fixed"), EXPLODING)
    for _ in range(2):
        trainer.run_epoch()
    assert trainer.state_dict()["last_good"] is None


# Learning rates -----------------------------------------------------------------------------------------------------


def one_cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=6)


def warm_up_and_cosine(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=2)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, lr_scheduler.CosineAnnealingLR(optimizer, 4)], [2])


SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {},
    "StepLR": {"lr_schedule": "StepLR", "lr_schedule_args": {"step_size": 1, "gamma": 0.5}},
    "CosineAnnealingLR": {"lr_schedule": "CosineAnnealingLR", "lr_schedule_args": {"T_max": 3}},
    "OneCycleLR": {"lr_schedule": one_cycle},
    "SequentialLR": {"lr_schedule": warm_up_and_cosine},
    # A threshold never met: no epoch is an improvement.
    "ReduceLROnPlateau": {"lr_schedule": "ReduceLROnPlateau", "lr_schedule_args": {"patience": 1, "threshold": 1e9}},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "algorithm"), [*((name, "delta-stn") for name in SCHEDULES), ("StepLR", "fixed")])
def test_each_restart_halves_the_learning_rate_under_any_schedule(make_task: Any, algorithm: str, name: str) -> None:
    """Of weights and response; that of the hyperparameters stays. From the last state, and from one kept back."""

    def rates(when: dict[tuple[int, int], float]) -> dict[tuple[int, int], dict[str, float]]:
        """(Epoch, restarts before it) -> the rate of each optimizer while it trains."""
        trainer = Trainer(make_task(restarts=2, **SCHEDULES[name]), algorithm=algorithm)
        found = {}
        step = trainer.rule.train_step

        def note(batch: Batch) -> Tensor:
            optimizers = trainer.stepper.optimizers
            groups = {key: optimizer.param_groups[0]["lr"] for key, optimizer in optimizers.items()}
            found[trainer.epoch, trainer.restarts] = groups
            return step(batch)

        trainer.rule.train_step = note  # type: ignore[method-assign]
        spoil(trainer, when)
        for _ in range(5):
            trainer.run_epoch()
        return found

    plain = rates({})
    for spoiled in (rates(TWICE), rates({**EXPLODING, (1, 1): math.nan})):
        assert max(restarts for _, restarts in spoiled) == 2
        assert {epoch for epoch, restarts in spoiled if restarts == 2} == {1, 2, 3, 4}
        for (epoch, restarts), groups in spoiled.items():
            factors = {key: 1.0 if key == "hyper" else 0.5**restarts for key in groups}
            assert groups == pytest.approx({key: factors[key] * rate for key, rate in plain[epoch, 0].items()})


def test_a_learning_rate_that_is_too_high_is_found_and_halved() -> None:
    """Ridge regression by plain gradient descent, of a curvature of about 6: .65 diverges, half of it converges."""
    task = get_task("ridge", lr=0.65, optimizer_args={}, epochs=80)
    trainer = Trainer(task, algorithm="fixed")
    reports, reasons = [], []
    for _ in range(task.training.epochs):
        reports.append(trainer.run_epoch())
        reasons.append(trainer.restarted)
    assert max(report["val_loss"] for report in reports) < 1e3  # found long before it was infinite
    (reason,) = [reason for reason in reasons if reason]
    back = int(reason.partition("went back to the end of epoch ")[2].partition(",")[0])
    assert back < 5
    assert trainer.diverged is None
    assert [report["epoch"] for report in reports] == list(range(1, 81))
    sane = Trainer(get_task("ridge", lr=0.1, optimizer_args={}, epochs=80), algorithm="fixed")
    for _ in range(80):
        expected = sane.run_epoch()
    assert reports[-1]["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-3)
