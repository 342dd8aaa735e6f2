"""Pairing of methods, determinism and exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.nn.dropout import UnitDropout
from tune_stn.space import Tunable
from tune_stn.training import Trainer, load_state, save_state

Differences = Callable[[Trainer, Trainer], list[str]]
ALGORITHMS = ("fixed", "stn", "delta-stn", "progress-ratio", "auto")
TUNING = ALGORITHMS[1:]
COSINE = {"lr_schedule": "CosineAnnealingLR", "lr_schedule_args": {"T_max": 6}}
STEPS = {"lr_schedule": "StepLR", "lr_schedule_args": {"step_size": 1, "gamma": 0.5}}


def plateau(optimizer: torch.optim.Optimizer, **settings: Any) -> torch.optim.lr_scheduler.LRScheduler:
    """Steps on the validation loss; made by a callable."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings)


def comparable(report: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in report.items() if key != "device_time_s"}


def hyper_of(trainer: Trainer) -> Tunable:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper


# Pairing and determinism ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
def test_methods_are_paired_at_a_seed(make_task: Any, network: str) -> None:
    """The same initial base weights, splits and data order, whatever else a method draws."""
    trainers = [Trainer(make_task(network), algorithm=algorithm, seed=3) for algorithm in ALGORITHMS]
    plain = {name: value.clone() for name, value in trainers[0].model.network.state_dict().items()}
    orders = []
    for trainer in trainers:
        network_state = trainer.model.network.state_dict()
        assert all(torch.equal(value, network_state[name]) for name, value in plain.items())
        assert torch.equal(trainer.splits.train.inputs, trainers[0].splits.train.inputs)
        seen: list[Tensor] = []
        step = trainer.rule.train_step

        def note(batch: Batch, *, seen: Any = seen, step: Any = step) -> Tensor:
            seen.append(batch.inputs)
            return step(batch)  # type: ignore[no-any-return]

        trainer.rule.train_step = note  # type: ignore[method-assign]
        for _ in range(2):
            trainer.run_epoch()
        orders.append(torch.stack(seen))
    assert all(torch.equal(orders[0], order) for order in orders[1:])
    assert not torch.equal(orders[0][:3], orders[0][3:])  # each epoch has an order of its own


def test_seed_actually_matters(make_task: Any) -> None:
    """For weights, data, order and noise, each by itself."""
    one, other = (Trainer(make_task(), algorithm="stn", seed=seed) for seed in (0, 1))
    assert not torch.equal(one.stepper.parameters("base")[0], other.stepper.parameters("base")[0])
    assert not torch.equal(one.splits.train.inputs, other.splits.train.inputs)
    full = [Trainer(make_task(response="full"), algorithm="stn", seed=seed) for seed in (0, 1)]
    assert not torch.equal(
        full[0].model.get_parameter("network.1.response_weight"),
        full[1].model.get_parameter("network.1.response_weight"),
    )
    # The same splits and weights: what is left is order and noise.
    task = make_task()
    splits = task.data(0)
    runs = [Trainer(task, algorithm="stn", seed=seed, splits=splits) for seed in (0, 1)]
    runs[1].model.load_state_dict(runs[0].model.state_dict())
    reports = [run.run_epoch() for run in runs]
    assert reports[0]["val_loss"] != reports[1]["val_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
def test_two_runs_are_identical_bit_for_bit(
    make_task: Any, differences: Differences, algorithm: str, network: str
) -> None:
    trainers = []
    for noise in (0, 1):
        torch.manual_seed(noise)  # the caller's generator must not matter
        trainer = Trainer(make_task(network), algorithm=algorithm, seed=5)
        trainers.append((trainer, [comparable(trainer.run_epoch()) for _ in range(3)]))
    assert trainers[0][1] == trainers[1][1]
    assert differences(trainers[0][0], trainers[1][0]) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_callers_generators_are_untouched(make_task: Any, algorithm: str) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    trainer = Trainer(make_task(), algorithm=algorithm)
    assert torch.equal(torch.get_rng_state(), before)
    trainer.run_epoch()
    assert torch.equal(torch.get_rng_state(), before)


# Resume --------------------------------------------------------------------------------------------------------------

RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd with momentum": ("mlp", {"train_steps": 2}),
    "adam and cosine": ("mlp", {"optimizer": "Adam", "hyper_optimizer": "Adam", **COSINE}),
    "rmsprop and steps": ("mlp", {"optimizer": "RMSprop", "lr": 0.005, **STEPS}),
    "adamw, full response, long cycle": ("mlp", {"optimizer": "AdamW", "response": "full", "train_steps": 5}),
    "plateau": ("mlp", {"lr_schedule": plateau, "lr_schedule_args": {"patience": 0}}),
    "cnn, rank 2": ("cnn", {"response": 2, "valid_steps": 2}),
    "batch norm, warm-up": ("batch-norm", {"warmup_epochs": 2, "tune_scales": False, "train_steps": 4}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "algorithm"),
    # Each setting with three rules, each rule with four settings or more.
    [(case, ALGORITHMS[(i + j) % 5]) for i, case in enumerate(RESUMED) for j in (0, 1, 3)],
)
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    make_task: Any, differences: Differences, tmp_path: Path, algorithm: str, case: str
) -> None:
    """Killed after an epoch, loaded from its file into a fresh trainer."""
    network, settings = RESUMED[case]
    epochs = 4

    def fresh() -> Trainer:
        return Trainer(make_task(network, **settings), algorithm=algorithm, seed=1)

    whole, reports = fresh(), []
    for epoch in range(epochs):
        save_state(whole.state_dict(), tmp_path / f"{epoch}.pt")
        reports.append(comparable(whole.run_epoch()))
    for killed in (1, 3):
        torch.manual_seed(1000 + killed)
        resumed = fresh()
        resumed.load_state_dict(load_state(tmp_path / f"{killed}.pt"))
        assert [comparable(resumed.run_epoch()) for _ in range(killed, epochs)] == reports[killed:]
        assert differences(whole, resumed) == []


def test_resume_test_can_fail(make_task: Any, differences: Differences, tmp_path: Path) -> None:
    """Each part of the state matters: without it, the resumed run is another."""
    whole = Trainer(make_task(**STEPS), algorithm="stn")
    whole.run_epoch()
    save_state(whole.state_dict(), tmp_path / "state.pt")
    whole.run_epoch()
    blank = Trainer(make_task(**STEPS), algorithm="stn").state_dict()
    for part in ("model", "optimizers", "lr_schedules", "schedule", "epoch", "since_hyper_step", "cost"):
        resumed = Trainer(make_task(**STEPS), algorithm="stn")
        resumed.load_state_dict({**load_state(tmp_path / "state.pt"), part: blank[part]})
        resumed.run_epoch()
        assert differences(whole, resumed) != [], part


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_users_own_dropout_resumes_bit_for_bit(make_task: Any, algorithm: str) -> None:
    """The model of the resume table has an unbound `nn.Dropout`; it is at work, and draws anew each epoch."""
    trainer = Trainer(make_task(), algorithm=algorithm)
    own = trainer.model.network.get_submodule("3")
    assert type(own) is nn.Dropout
    assert type(trainer.model.network.get_submodule("0")) is UnitDropout
    masks: list[Tensor] = []
    own.register_forward_hook(lambda module, inputs, output: masks.append(output == 0) if module.training else None)
    resumed = Trainer(make_task(), algorithm=algorithm)
    for _ in range(2):
        trainer.run_epoch()
    resumed.load_state_dict(trainer.state_dict())
    count = len(masks)
    trainer.run_epoch()
    again: list[Tensor] = []
    resumed.model.network.get_submodule("3").register_forward_hook(
        lambda module, inputs, output: again.append(output == 0) if module.training else None
    )
    resumed.run_epoch()
    last = masks[count:]
    assert len(last) == len(again) > 0
    assert all(torch.equal(one, other) for one, other in zip(last, again, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(last, masks[: len(last)], strict=True))


def test_state_is_not_tied_to_the_run_that_gave_it(make_task: Any, differences: Differences) -> None:
    """A loaded run trains its own tensors; the other's go on as if nothing had happened."""
    alone, giver, taker = (Trainer(make_task(), algorithm="stn") for _ in range(3))
    alone.run_epoch()
    giver.run_epoch()
    taker.load_state_dict(giver.state_dict())
    taker.run_epoch()
    taker.run_epoch()
    assert differences(alone, giver) == []


def test_fixed_run_keeps_its_own_hyperparameters_when_it_loads_a_checkpoint(make_task: Any, tmp_path: Path) -> None:
    """A population method copies the better trial's weights after it has decided on new hyperparameters."""
    giver = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.6, "decay": 1e-2})
    giver.run_epoch()
    save_state(giver.state_dict(), tmp_path / "state.pt")
    taker = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.0, "decay": 1e-5})
    taker.load_state_dict(load_state(tmp_path / "state.pt"))
    assert taker.model.hyper.mean_values() == pytest.approx({"dropout": 0.0, "input_scale": 0.1, "decay": 1e-5})
    assert torch.equal(taker.stepper.parameters("base")[0], giver.stepper.parameters("base")[0])
    report = taker.run_epoch()
    assert report["hp/dropout"] == 0.0
    assert report["epoch"] == 2


@pytest.mark.parametrize("algorithm", TUNING)
def test_self_tuning_run_takes_the_hyperparameters_of_the_checkpoint(make_task: Any, algorithm: str) -> None:
    giver = Trainer(make_task(), algorithm=algorithm, hp={"dropout": 0.6})
    giver.run_epoch()
    taker = Trainer(make_task(), algorithm=algorithm, hp={"dropout": 0.1})
    taker.load_state_dict(giver.state_dict())
    assert torch.equal(hyper_of(taker).raw, hyper_of(giver).raw)
    assert torch.equal(hyper_of(taker).rho, hyper_of(giver).rho)
