"""The loop: reports, cycle, pairing of methods, exact resume, divergence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.splits import Split
from tune_stn.nn.dropout import UnitDropout
from tune_stn.space import Normal, SearchSpace, Tunable
from tune_stn.tasks import get_task
from tune_stn.tasks.ridge import validation_loss
from tune_stn.training import Trainer, load_state, save_state

ALGORITHMS = ("fixed", "stn", "delta-stn")
TUNING = ("stn", "delta-stn")
COSINE = {"lr_schedule": "CosineAnnealingLR", "lr_schedule_args": {"T_max": 6}}


def plateau(optimizer: torch.optim.Optimizer, **settings: Any) -> torch.optim.lr_scheduler.LRScheduler:
    """Steps on the validation loss; made by a callable."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings)


STEPS = {"lr_schedule": "StepLR", "lr_schedule_args": {"step_size": 1, "gamma": 0.5}}


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """A nested state as path -> leaf."""
    if isinstance(state, Mapping):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{path}/{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{path}/{i}").items()}
    return {path: state}


def differences(one: Trainer, other: Trainer) -> list[str]:
    """Where two trainers' states differ in a single bit; wall-clock aside."""
    a, b = flat(one.state_dict()), flat(other.state_dict())
    missing = sorted(a.keys() ^ b.keys())
    wrong = []
    for key in a.keys() & b.keys():
        equal = torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key]
        if not equal and key != "/device_time_s":
            wrong.append(key)
    return missing + sorted(wrong)


def comparable(report: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in report.items() if key != "device_time_s"}


def hyper_of(trainer: Trainer) -> Tunable:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper


# Reports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_report_has_the_same_keys(make_task: Any, algorithm: str) -> None:
    trainer = Trainer(make_task(warmup_epochs=1), algorithm=algorithm)
    reports = [trainer.run_epoch() for _ in range(3)]
    names = ("dropout", "input_scale", "decay")
    assert list(reports[0]) == [
        *("epoch", "step", "cost", "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"),
        *(f"hp/{name}" for name in names),
        *(f"scale/{name}" for name in names),
        "device_time_s",
    ]
    assert all(list(report) == list(reports[0]) for report in reports)
    assert all(type(value) in (int, float) for report in reports for value in report.values())
    json.dumps(reports)
    assert [(report["epoch"], report["step"]) for report in reports] == [(1, 3), (2, 6), (3, 9)]
    assert 0 < reports[0]["device_time_s"] < reports[1]["device_time_s"]


def test_start_values_are_reported_until_the_first_hyper_step(make_task: Any) -> None:
    trainer = Trainer(make_task(warmup_epochs=1), algorithm="stn", hp={"dropout": 0.4})
    first, second = trainer.run_epoch(), trainer.run_epoch()
    assert [first[f"hp/{n}"] for n in ("dropout", "input_scale", "decay")] == pytest.approx([0.4, 0.1, 1e-3], rel=1e-5)
    assert second["hp/dropout"] != first["hp/dropout"]
    assert first["scale/decay"] == pytest.approx(0.5)


def test_evaluation_is_over_whole_splits_whatever_its_batches(make_task: Any) -> None:
    reports = [Trainer(make_task(eval_batch_size=size)).run_epoch() for size in (7, 1000)]
    for key in ("val_loss", "val_accuracy", "test_loss", "test_accuracy"):
        assert reports[0][key] == pytest.approx(reports[1][key], rel=1e-5)


def test_train_loss_is_the_mean_over_the_steps_with_penalties(make_task: Any) -> None:
    trainer = Trainer(make_task(), algorithm="fixed")
    step, losses = trainer.rule.train_step, []

    def keep(*args: Any) -> Tensor:
        losses.append(step(*args))
        return losses[-1]

    trainer.rule = type("Rule", (), {"name": "fixed", "tunes": False, "train_step": staticmethod(keep)})()
    assert trainer.run_epoch()["train_loss"] == pytest.approx(float(torch.stack(losses).mean()))
    assert len(losses) == 3


# Cycle --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", TUNING)
def test_no_hyper_step_in_warm_up(make_task: Any, algorithm: str) -> None:
    trainer = Trainer(make_task(warmup_epochs=2, train_steps=1), algorithm=algorithm)
    hyper = hyper_of(trainer)
    start = hyper.raw.detach().clone(), hyper.rho.detach().clone()
    for _ in range(2):
        trainer.run_epoch()
        assert torch.equal(hyper.raw, start[0])
        assert torch.equal(hyper.rho, start[1])
    trainer.run_epoch()
    assert not torch.equal(hyper.raw, start[0])
    assert trainer.schedule.steps == [0, 7, 8, 9]


@pytest.mark.parametrize(("train_steps", "valid_steps"), [(1, 1), (2, 1), (2, 3), (5, 1), (7, 2)])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_cycle_is_honoured_across_epochs(
    make_task: Any, train_steps: int, valid_steps: int, warmup_epochs: int
) -> None:
    """3 steps an epoch: cycles of 2, 5 and 7 go over the ends of epochs."""
    task = make_task(train_steps=train_steps, valid_steps=valid_steps, warmup_epochs=warmup_epochs)
    trainer = Trainer(task, algorithm="stn")
    events: list[str] = []
    hyper_step, train_step = trainer.learner.hyper_step, trainer.learner.step_weights

    def note_hyper(batch: Split) -> None:
        events.append("h")
        hyper_step(batch)

    def note_train(*args: Any) -> None:
        events.append("t")
        train_step(*args)

    trainer.learner.hyper_step, trainer.learner.step_weights = note_hyper, note_train  # type: ignore[method-assign]
    for _ in range(5):
        trainer.run_epoch()
    warm = 3 * warmup_epochs
    cycles, rest = divmod(15 - warm, train_steps)
    cycle = "t" * train_steps + "h" * valid_steps
    assert "".join(events) == "t" * warm + cycle * cycles + "t" * rest
    assert trainer.schedule.steps == [0, *(warm + train_steps * (i + 1) for i in range(cycles))]
    assert trainer.schedule.epochs == [0, *((step - 1) // 3 for step in trainer.schedule.steps[1:])]
    assert trainer.schedule.sources == ["start", *["stn"] * cycles]


def test_hyper_steps_see_validation_examples_alone(make_task: Any) -> None:
    task = make_task(train_steps=1)
    trainer = Trainer(task, algorithm="stn")
    seen: list[Tensor] = []
    hyper_step = trainer.learner.hyper_step

    def note(batch: Split) -> None:
        seen.append(batch.inputs)
        hyper_step(batch)

    trainer.learner.hyper_step = note  # type: ignore[method-assign]
    trainer.run_epoch()
    rows = {tuple(row) for batch in seen for row in batch.tolist()}
    assert [len(batch) for batch in seen] == [8, 8, 8]
    assert rows == {tuple(row) for row in trainer.splits.valid.inputs.tolist()}  # 16 of them in 2 batches of 8


def test_training_sees_training_examples_alone(make_task: Any) -> None:
    """Other validation and test examples change no weight of a plain run; other test examples change nothing at all."""
    task = make_task()
    own, other = task.data(0), task.data(1)
    runs = {
        "own": own,
        "other test": replace(own, test=other.test),
        "other valid": replace(own, valid=other.valid),
    }
    trainers = {name: {a: Trainer(task, algorithm=a, splits=s) for a in ALGORITHMS} for name, s in runs.items()}
    for by_algorithm in trainers.values():
        for trainer in by_algorithm.values():
            trainer.run_epoch()
    for algorithm in ALGORITHMS:
        assert differences(trainers["own"][algorithm], trainers["other test"][algorithm]) == []
    assert differences(trainers["own"]["fixed"], trainers["other valid"]["fixed"]) == []
    assert differences(trainers["own"]["stn"], trainers["other valid"]["stn"]) != []


# Optimizers and learning-rate schedules -----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"])
def test_any_optimizer_trains(make_task: Any, algorithm: str, optimizer: str) -> None:
    task = make_task(optimizer=optimizer, lr=0.01, hyper_optimizer=optimizer)
    trainer = Trainer(task, algorithm=algorithm)
    before = [p.detach().clone() for p in trainer.learner.base]
    report = trainer.run_epoch()
    assert math.isfinite(report["val_loss"])
    assert not any(torch.equal(p, then) for p, then in zip(trainer.learner.base, before, strict=True))
    assert type(trainer.learner.optimizers["base"]).__name__ == optimizer


def test_a_callable_makes_the_optimizer(make_task: Any) -> None:
    def make(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr / 2)

    trainer = Trainer(make_task(optimizer=make), algorithm="delta-stn")
    assert {trainer.learner.optimizers[name].param_groups[0]["lr"] for name in ("base", "response")} == {0.025}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        (STEPS, [0.025, 0.0125, 0.00625]),
        (COSINE, [0.05 * (1 + math.cos(math.pi * e / 6)) / 2 for e in (1, 2, 3)]),
        ({"lr_schedule": "ReduceLROnPlateau", "lr_schedule_args": {"patience": 0, "threshold": 1e9}}, None),
    ],
    ids=["StepLR", "CosineAnnealingLR", "ReduceLROnPlateau"],
)
def test_learning_rate_follows_its_schedule_once_an_epoch(
    make_task: Any, algorithm: str, settings: dict[str, Any], rates: list[float] | None
) -> None:
    """Those of base and response; the hyper-optimizer's rate stays. A plateau looks at the validation loss."""
    trainer = Trainer(make_task(**settings), algorithm=algorithm)
    expected = rates or [0.005, 0.0005, 0.00005]  # a threshold never met: no epoch is an improvement
    for rate in expected:
        trainer.run_epoch()
        for name, optimizer in trainer.learner.optimizers.items():
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 if name == "hyper" else rate)


# Pairing and determinism --------------------------------------------------------------------------------------------


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

        def note(learner: Any, batch: Split, meter: Any, *, seen: Any = seen, step: Any = step) -> Tensor:
            seen.append(batch.inputs)
            return step(learner, batch, meter)  # type: ignore[no-any-return]

        names = {name: getattr(trainer.rule, name) for name in ("name", "tunes", "centred", "response")}
        trainer.rule = type("Rule", (), {**names, "train_step": staticmethod(note)})()
        for _ in range(2):
            trainer.run_epoch()
        orders.append(torch.stack(seen))
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0][:3], orders[0][3:])  # each epoch has an order of its own


def test_seed_actually_matters(make_task: Any) -> None:
    """For weights, data, order and noise, each by itself."""
    one, other = (Trainer(make_task(), algorithm="stn", seed=seed) for seed in (0, 1))
    assert not torch.equal(one.learner.base[0], other.learner.base[0])
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
def test_two_runs_are_identical_bit_for_bit(make_task: Any, algorithm: str, network: str) -> None:
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


# Resume -------------------------------------------------------------------------------------------------------------

RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd with momentum": ("mlp", {"train_steps": 2}),
    "adam and cosine": ("mlp", {"optimizer": "Adam", "hyper_optimizer": "Adam", **COSINE}),
    "rmsprop and steps": ("mlp", {"optimizer": "RMSprop", "lr": 0.005, **STEPS}),
    "adamw, full response, long cycle": ("mlp", {"optimizer": "AdamW", "response": "full", "train_steps": 5}),
    "plateau": ("mlp", {"lr_schedule": plateau, "lr_schedule_args": {"patience": 0}}),
    "cnn, rank 2": ("cnn", {"response": 2, "valid_steps": 2}),
    "batch norm, warm-up": ("batch-norm", {"warmup_epochs": 2, "tune_scales": False, "train_steps": 4}),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    make_task: Any, tmp_path: Path, algorithm: str, case: str
) -> None:
    """Killed after an epoch, loaded from its file into a fresh trainer, for two seeds."""
    network, settings = RESUMED[case]
    epochs = 4
    for seed in (0, 1):

        def fresh(seed: int = seed) -> Trainer:
            return Trainer(make_task(network, **settings), algorithm=algorithm, seed=seed)

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


def test_resume_test_can_fail(make_task: Any, tmp_path: Path) -> None:
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


def test_state_is_not_tied_to_the_run_that_gave_it(make_task: Any) -> None:
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
    assert torch.equal(taker.learner.base[0], giver.learner.base[0])
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


# Hyperparameters ----------------------------------------------------------------------------------------------------


def test_constant_on_a_bound_is_used_exactly(make_task: Any) -> None:
    """A dropout rate of 0.0 drops nothing: not nudged inside, as a start value has to be."""
    trainer = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.0, "input_scale": 0.0, "decay": 1e-1})
    report = trainer.run_epoch()
    assert report["hp/dropout"] == report["hp/input_scale"] == 0.0
    assert report["hp/decay"] == pytest.approx(0.1)
    dropout = trainer.model.network.get_submodule("0").train()
    inputs = torch.ones(1000, 36)
    with trainer.model.using(trainer.model.hyper.constant_sample()):
        assert torch.equal(dropout(inputs), inputs)


@pytest.mark.parametrize("algorithm", TUNING)
def test_start_on_a_bound_can_leave_it(make_task: Any, algorithm: str) -> None:
    trainer = Trainer(make_task(train_steps=1), algorithm=algorithm, hp={"dropout": 0.0})
    raw = hyper_of(trainer).raw.detach().clone()
    assert torch.isfinite(raw).all()
    report = trainer.run_epoch()
    assert 0 < report["hp/dropout"] < 0.05
    assert hyper_of(trainer).raw[0] != raw[0]


def test_named_hyperparameters_override_the_start_and_others_keep_it(make_task: Any) -> None:
    trainer = Trainer(make_task(), algorithm="fixed", hp={"decay": 0.01})
    assert trainer.hp == {"dropout": 0.2, "input_scale": 0.1, "decay": 0.01}


@pytest.mark.parametrize(
    ("hp", "words"),
    [
        ({"dropout": 1.5}, "1.5 of 'dropout' is outside"),
        ({"dropout": -0.1}, "-0.1 of 'dropout' is outside"),
        ({"dropout": math.nan}, "nan of 'dropout' is outside"),
        ({"dropuot": 0.1}, "unknown hyperparameter 'dropuot'"),
        ({"lr": 0.1}, "cannot be tuned inside a run"),
        ({"decay": "small"}, "'small', which is no number"),
    ],
)
@pytest.mark.parametrize("algorithm", ["fixed", "stn"])
def test_bad_hyperparameters_are_named(make_task: Any, algorithm: str, hp: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Trainer(make_task(), algorithm=algorithm, hp=hp)


def test_unknown_algorithm_is_named(make_task: Any) -> None:
    with pytest.raises(ValueError, match="'bogus'; accepted are fixed, stn, delta-stn"):
        Trainer(make_task(), algorithm="bogus")


# Divergence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_divergence_is_said_and_never_raised(make_task: Any, algorithm: str, network: str) -> None:
    trainer = Trainer(make_task(network, lr=1e25), algorithm=algorithm)
    reports = [trainer.run_epoch() for _ in range(2)]
    assert reports[-1]["val_loss"] == math.inf
    assert trainer.diverged is not None
    assert "became" in trainer.diverged
    assert list(reports[0]) == list(reports[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_healthy_run_has_not_diverged(make_task: Any, algorithm: str) -> None:
    trainer = Trainer(make_task(), algorithm=algorithm)
    assert math.isfinite(trainer.run_epoch()["val_loss"])
    assert trainer.diverged is None


def test_divergence_in_training_alone_is_found(make_task: Any) -> None:
    """Evaluation would not show it: the penalty is infinite, the weights are not."""

    class Infinite:
        names = ("dropout",)

        def __call__(self, network: nn.Module, sample: Any) -> Tensor:
            return sample["dropout"] * math.inf

    task = make_task()
    trainer = Trainer(replace(task, penalties=(*task.penalties, Infinite())), algorithm="fixed")
    report = trainer.run_epoch()
    assert report["val_loss"] == math.inf
    assert trainer.diverged == "the training loss became inf in epoch 1"


@pytest.mark.parametrize("algorithm", TUNING)
def test_diverged_hyperparameter_is_named(make_task: Any, algorithm: str) -> None:
    """A value without bounds runs away."""
    task = make_task()
    space = SearchSpace({**task.space, "free": Normal()})
    penalty = type("Free", (), {"names": ("free",), "__call__": lambda self, network, sample: sample["free"] * 0})()
    task = replace(task, space=space, start={**task.start, "free": 0.0}, penalties=(*task.penalties, penalty))
    trainer = Trainer(task, algorithm=algorithm)
    hyper_of(trainer).raw.data[3] = math.inf
    trainer.run_epoch()
    assert trainer.diverged is not None
    named = trainer.diverged.partition("not finite any more: ")[2]
    assert "free" in named.split(", ")


def test_divergence_is_part_of_the_state(make_task: Any) -> None:
    trainer = Trainer(make_task(lr=1e25), algorithm="fixed")
    for _ in range(2):
        trainer.run_epoch()
    again = Trainer(make_task(lr=1e25), algorithm="fixed")
    again.load_state_dict(trainer.state_dict())
    assert again.diverged == trainer.diverged is not None


# The ridge task as users run it -------------------------------------------------------------------------------------


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
