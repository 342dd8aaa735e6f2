"""The loop: reports, cycle, learning-rate schedules, start values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.space import SearchSpace, Tunable, Uniform
from tune_stn.training import Trainer

Differences = Callable[[Trainer, Trainer], list[str]]
ALGORITHMS = ("fixed", "stn", "delta-stn")
TUNING = ("stn", "delta-stn")
COSINE = {"lr_schedule": "CosineAnnealingLR", "lr_schedule_args": {"T_max": 6}}
STEPS = {"lr_schedule": "StepLR", "lr_schedule_args": {"step_size": 1, "gamma": 0.5}}


def hyper_of(trainer: Trainer) -> Tunable:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper


# Reports -------------------------------------------------------------------------------------------------------------


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

    trainer.rule.train_step = keep  # type: ignore[method-assign]
    assert trainer.run_epoch()["train_loss"] == pytest.approx(float(torch.stack(losses).mean()))
    assert len(losses) == 3


# Cycle ---------------------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.parametrize(("train_steps", "valid_steps"), [(1, 1), (2, 1), (2, 3), (5, 1), (7, 2)])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_cycle_is_honoured_across_epochs(
    make_task: Any, train_steps: int, valid_steps: int, warmup_epochs: int
) -> None:
    """3 steps an epoch: cycles of 2, 5 and 7 go over the ends of epochs."""
    task = make_task(train_steps=train_steps, valid_steps=valid_steps, warmup_epochs=warmup_epochs)
    trainer = Trainer(task, algorithm="stn")
    events: list[str] = []
    hyper_step, train_step = trainer.rule.hyper_step, trainer.rule.train_step

    def note_hyper(batch: Batch) -> None:
        events.append("h")
        hyper_step(batch)

    def note_train(*args: Any) -> Tensor:
        events.append("t")
        return train_step(*args)

    trainer.rule.hyper_step, trainer.rule.train_step = note_hyper, note_train  # type: ignore[method-assign]
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
    hyper_step = trainer.rule.hyper_step

    def note(batch: Batch) -> None:
        seen.append(batch.inputs)
        hyper_step(batch)

    trainer.rule.hyper_step = note  # type: ignore[method-assign]
    trainer.run_epoch()
    rows = {tuple(row) for batch in seen for row in batch.tolist()}
    assert [len(batch) for batch in seen] == [8, 8, 8]
    assert rows == {tuple(row) for row in trainer.splits.valid.inputs.tolist()}  # 16 of them in 2 batches of 8


def test_training_sees_training_examples_alone(make_task: Any, differences: Differences) -> None:
    """Other validation examples change in a plain run only what to go back from; other test ones nothing at all."""
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
    assert differences(trainers["own"]["fixed"], trainers["other valid"]["fixed"]) == [
        "/best_val_loss",
        "/largest_good_loss",
        "/least_reported",
    ]
    assert differences(trainers["own"]["stn"], trainers["other valid"]["stn"]) != []


# Optimizers and learning-rate schedules ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"])
def test_any_optimizer_trains(make_task: Any, algorithm: str, optimizer: str) -> None:
    task = make_task(optimizer=optimizer, lr=0.01, hyper_optimizer=optimizer)
    trainer = Trainer(task, algorithm=algorithm)
    before = [p.detach().clone() for p in trainer.stepper.parameters("base")]
    report = trainer.run_epoch()
    assert math.isfinite(report["val_loss"])
    assert not any(torch.equal(p, then) for p, then in zip(trainer.stepper.parameters("base"), before, strict=True))
    assert type(trainer.stepper.optimizers["base"]).__name__ == optimizer


def test_a_callable_makes_the_optimizer(make_task: Any) -> None:
    def make(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr / 2)

    trainer = Trainer(make_task(optimizer=make), algorithm="delta-stn")
    assert {trainer.stepper.optimizers[name].param_groups[0]["lr"] for name in ("base", "response")} == {0.025}


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
        for name, optimizer in trainer.stepper.optimizers.items():
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 if name == "hyper" else rate)


# Hyperparameters -----------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("bound", [0.0, 0.9])
def test_start_on_a_bound_can_leave_it_inwards_alone(make_task: Any, algorithm: str, bound: float) -> None:
    """Down the validation loss or up it: one of the two leads inside."""
    inward = []
    for maximize in (False, True):
        task = make_task(train_steps=3, tune_scales=False, hyper_optimizer_args={"maximize": maximize})
        trainer = Trainer(task, algorithm=algorithm, hp={"dropout": bound})
        raw = hyper_of(trainer).raw.detach()
        start = raw.clone()
        assert torch.isfinite(raw).all()
        report = trainer.run_epoch()
        assert 0 < abs(report["hp/dropout"] - bound) < 0.05
        inward.append(float(start[0] - raw[0]) * (1 if bound else -1))
    assert min(inward) == 0.0
    assert max(inward) > 0.0


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
        ({"decay": "small"}, "'small', which is not a number"),
    ],
)
@pytest.mark.parametrize("algorithm", ["fixed", "stn"])
def test_bad_hyperparameters_are_named(make_task: Any, algorithm: str, hp: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Trainer(make_task(), algorithm=algorithm, hp=hp)


def test_unknown_algorithm_is_named(make_task: Any) -> None:
    with pytest.raises(ValueError, match="'bogus'; accepted are auto, stn, delta-stn, progress-ratio, fixed"):
        Trainer(make_task(), algorithm="bogus")


# What of the task goes into the model -------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", [False, True])
def test_norms_respond_where_the_task_says_so(make_task: Any, norms: bool) -> None:
    trainer = Trainer(make_task("batch-norm", norms=norms), algorithm="stn")
    assert ("1" in trainer.model.conversion.responding) is norms
    assert math.isfinite(trainer.run_epoch()["val_loss"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_are_dropped_where_the_task_says_so(make_task: Any, algorithm: str) -> None:
    """In training alone, at the rate of the hyperparameter."""
    space = SearchSpace({"dropout": Uniform(0.0, 0.9), "weights": Uniform(0.0, 0.9)}, per_batch=["weights"])
    task = make_task(
        space=space,
        start={"dropout": 0.1, "weights": 0.5},
        weight_dropout={"1": "weights"},
        augmentations=(),
        penalties=(),
    )
    trainer = Trainer(task, algorithm=algorithm)
    assert trainer.model.conversion.bound == {"0": "dropout", "1 (weights)": "weights"}
    layer = trainer.model.network.get_submodule("1")
    inputs, sample = torch.eye(36), trainer.model.hyper.constant_sample()
    with trainer.model.using(sample):
        share = [float((layer.train(mode)(inputs) == layer.bias).float().mean()) for mode in (True, False)]
    assert share == pytest.approx([0.5, 0.0], abs=0.1)
    assert math.isfinite(trainer.run_epoch()["val_loss"])
