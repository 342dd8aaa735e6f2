"""Training settings: all that is refused, and the optimizers that are made of what is accepted."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from tune_stn.tasks import Training

INTEGER = "accepted is an integer of 1 or more"
POSITIVE = "accepted is a finite number above 0"
NAMED = "accepted is the name of a class in torch.optim, or a callable"


def refusals() -> list[tuple[dict[str, Any], str]]:
    counts = ("epochs", "batch_size", "accumulate", "eval_batch_size", "train_steps", "valid_steps")
    numbers = ("lr", "hyper_lr", "scale", "clip_norm", "hyper_clip_norm", "response_share")
    switches = ("tune_scales", "compile", "relative_hyper_lr", "shrink_gates")
    return [
        *(({name: value}, INTEGER) for name in counts for value in (0, -1, 1.0, "5", True, None)),
        *(({name: value}, POSITIVE) for name in numbers for value in (0.0, -1.0, math.inf, math.nan, "1", True)),
        *(({name: None}, POSITIVE) for name in ("lr", "hyper_lr", "scale", "response_share")),
        *(({"response_share": v}, "accepted is a number above 0, at most 1") for v in (1.01, 2)),
        *(({"hyper_lr": v}, f"{POSITIVE}, or 'auto'") for v in ("automatic", 0, None, True)),
        *(({"precision": v}, "accepted are 'float32' and 'bfloat16'") for v in ("float16", "bf16", 32, None)),
        *(({"entropy_weight": v}, "accepted is a finite number of at least 0") for v in (-1e-9, math.inf, None)),
        *(({"response_origin": v}, "accepted is a finite number") for v in (-math.inf, math.nan, "-3", True)),
        *(
            ({name: v}, "accepted is an integer of 0 or more")
            for name in ("warmup_epochs", "restarts")
            for v in (-1, 0.5, True, None)
        ),
        *(({name: v}, "accepted are true and false") for name in switches for v in (1, "true", None)),
        *(({name: v}, NAMED) for name in ("optimizer", "hyper_optimizer") for v in ("sgd", "Tensor", "", 3, None)),
        *(({"lr_schedule": v}, "name of a class in torch.optim.lr_scheduler") for v in ("Step", "SGD", "Optimizer", 1)),
        *(
            ({name: v}, "accepted is a mapping such as {'momentum': 0.9}")
            for name in ("optimizer_args", "hyper_optimizer_args", "lr_schedule_args")
            for v in (None, [("momentum", 0.9)], "momentum=0.9")
        ),
        ({"optimizer_args": {"momentun": 0.9}}, "do not fit SGD: got an unexpected keyword argument 'momentun'"),
        ({"optimizer_args": {"lr": 0.9}}, "do not fit SGD"),
        ({"hyper_optimizer_args": {"nesterov": True}}, "do not fit RMSprop"),
        ({"lr_schedule": "StepLR"}, "do not fit StepLR: missing a required argument: 'step_size'"),
        ({"optimizer": "LBFGS"}, "its step needs 'closure'"),
        *(
            ({"response": v}, "accepted are 'full', 'gate' and a rank of 1 or more")
            for v in ("fill", "none", 0, 1.5, None, {"fc": "fill"}, {"fc": "auto"}, {"fc": "gate", "*": -1})
        ),
    ]


@pytest.mark.parametrize(("setting", "message"), refusals(), ids=lambda it: str(it) if isinstance(it, dict) else "")
def test_what_is_refused_is_named_with_what_is_accepted(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Training(**setting)
    assert message in str(caught.value)
    (name,), (value,) = setting, setting.values()
    if name == "response":
        assert "response=" in str(caught.value)
    elif "do not fit" not in message:
        assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 1, "batch_size": 1, "warmup_epochs": 0, "entropy_weight": 0, "lr": 1},
        {"clip_norm": 0.25, "hyper_clip_norm": 1},
        {"hyper_lr": "auto"},
        {"clip_norm": None, "hyper_clip_norm": None, "restarts": 0, "response_share": 1},
        {"accumulate": 4, "precision": "bfloat16", "compile": True, "relative_hyper_lr": True},
        {"optimizer": "AdamW", "optimizer_args": {"weight_decay": 0.0}},
        pytest.param(
            {
                "optimizer": torch.optim.SGD,
                "hyper_optimizer": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
            },
            id="a class and a function",
        ),
        {"lr_schedule": "MultiStepLR", "lr_schedule_args": {"milestones": [1, 2], "gamma": 0.2}},
        {"response": "full"},
        {"response": 8},
        {"response_origin": None, "shrink_gates": False},
        {"response_origin": -1.5},
        {"response": {"conv*": "gate", "fc": 8, "head": None}},
    ],
    ids=str,
)
def test_what_is_accepted(settings: dict[str, Any]) -> None:
    training = Training(**settings)
    assert {name: getattr(training, name) for name in settings} == settings


def test_settings_are_checked_again_when_replaced_and_cannot_be_changed() -> None:
    training = Training()
    with pytest.raises(ValueError, match="epochs=0"):
        replace(training, epochs=0)
    with pytest.raises(FrozenInstanceError):
        training.epochs = 3  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    assert Training.__doc__ is not None
    for field in fields(Training):
        assert f"        {field.name}: " in Training.__doc__


def test_optimizers_are_those_asked_for() -> None:
    training = Training(
        optimizer="SGD",
        lr=0.3,
        optimizer_args={"momentum": 0.9},
        hyper_optimizer="Adam",
        hyper_lr=0.02,
        hyper_optimizer_args={"betas": (0.5, 0.9)},
    )
    parameter = nn.Parameter(torch.zeros(1))
    optimizer, hyper = training.make_optimizer([parameter]), training.make_hyper_optimizer([parameter], hyper_steps=100)
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.3, 0.9)
    assert isinstance(hyper, torch.optim.Adam)
    assert (hyper.defaults["lr"], hyper.defaults["betas"]) == (0.02, (0.5, 0.9))
    assert training.make_lr_schedule(optimizer) is None


@pytest.mark.parametrize(
    ("hyper_steps", "expected"), [(0, 6.0), (1, 6.0), (50, 0.12), (500, 0.012), (600, 0.01), (5000, 0.01)]
)
def test_an_automatic_rate_crosses_a_domain_within_the_run(hyper_steps: int, expected: float) -> None:
    """6 / N, and not less than the papers' .01; a number stays what it is."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = Training(hyper_lr="auto").make_hyper_optimizer([parameter], hyper_steps=hyper_steps)
    assert optimizer.defaults["lr"] == pytest.approx(expected)
    optimizer = Training(hyper_lr=0.02).make_hyper_optimizer([parameter], hyper_steps=hyper_steps)
    assert optimizer.defaults["lr"] == 0.02


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 50, "warmup_epochs": 2, "train_steps": 5}, 96),
        ({"epochs": 50, "warmup_epochs": 2, "train_steps": 5, "valid_steps": 3}, 288),
        ({"epochs": 2, "warmup_epochs": 2}, 0),
        ({"epochs": 2, "warmup_epochs": 9}, 0),
    ],
)
def test_hyper_steps_of_a_run(settings: dict[str, Any], expected: int) -> None:
    """Of ten training steps an epoch."""
    assert Training(**settings).hyper_steps(10) == expected
    assert (Training(**settings).why_no_hyper_step(10) == "") == bool(expected)


def test_callables_make_what_they_like() -> None:
    training = Training(
        lr=0.3,
        optimizer=lambda parameters, lr, twice: torch.optim.Adagrad(parameters, lr=2 * lr if twice else lr),
        optimizer_args={"twice": True},
        lr_schedule=lambda optimizer, gamma: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma),
        lr_schedule_args={"gamma": 0.5},
    )
    optimizer = training.make_optimizer([nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adagrad
    assert optimizer.defaults["lr"] == 0.6
    assert type(training.make_lr_schedule(optimizer)) is torch.optim.lr_scheduler.ExponentialLR


def test_schedule_steps_the_learning_rate() -> None:
    training = Training(lr=1.0, lr_schedule="StepLR", lr_schedule_args={"step_size": 2, "gamma": 0.1})
    optimizer = training.make_optimizer([nn.Parameter(torch.zeros(1))])
    schedule = training.make_lr_schedule(optimizer)
    assert schedule is not None
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1])
