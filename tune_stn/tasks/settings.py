"""How a task is trained: one frozen record, checked once."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tune_stn.nn.response import ResponseSize, check_response_size
from tune_stn.nn.without_compiler import light
from tune_stn.tasks.lr_schedule import NonMonotone

# Beside those of torch.
LR_SCHEDULES: Mapping[str, type[torch.optim.lr_scheduler.LRScheduler]] = {"NonMonotone": NonMonotone}
# From a twentieth of a bounded domain to nineteen twentieths, in raw coordinates.
DOMAIN = 6.0
LEAST_HYPER_LR = 0.01  # of both papers, in runs of 10,000 hyper-steps and more
OptimizerChoice = str | Callable[..., torch.optim.Optimizer]
ScheduleChoice = str | Callable[..., torch.optim.lr_scheduler.LRScheduler]


NO_RESPONSE = (
    "; also 'auto', or a mapping from module path to one of these or None; a network without any response is trained "
    "by algorithm 'auto' or 'fixed'"
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of one training run; the self-tuning part is ignored by `fixed`.

    Attributes:
        epochs: Length of a trial, in passes over the training split.
        batch_size: Number of examples of a training batch, and of a validation batch in a hyper-step.
        optimizer: A class of `torch.optim` by name, or a callable `(parameters, lr=..., **optimizer_args)`.
        lr: Learning rate of the weights.
        optimizer_args: Further keyword arguments of the optimizer. Default none.
        lr_schedule: A class of `torch.optim.lr_scheduler` by name, "NonMonotone" (`tasks.lr_schedule`), a callable
            `(optimizer, **lr_schedule_args)`, or None; stepped once an epoch, `ReduceLROnPlateau` and its kind with the
            validation loss. Default None.
        lr_schedule_args: Keyword arguments of the learning rate's schedule. Default none.
        patience: Number of epochs in a row without a better validation loss than before, after which a trial ends
            early. Default None: no such end.
        keep_best: Whether a run keeps the weights and hyperparameters of its best epoch, for `Trainer.restore_best`;
            its checkpoints then hold both states.
        clip_norm: Largest norm of a step's gradient of the weights. Default None: no limit.
        accumulate: Number of parts in which a batch goes through the network, to need less memory; the gradient is that
            of the whole batch for a loss that is a mean over examples. A batch norm, and a mean over the targets that
            are not ignored, see each part by itself.
        precision: "float32", or "bfloat16" for the network under autocast; losses and weights stay float32.
        compile: Whether `torch.compile` compiles the network: for training, response and hyper-steps, and evaluation.
            LSTMs inside it stay as they are; so do response steps where there are LSTMs, attention or norms.
        cuda_graphs: Whether the gradients of a step are recorded as a CUDA graph and replayed, so that Python is not
            what a GPU waits for; where a network carries a state from batch to batch, its LSTMs' loops over time. On a
            CPU it changes nothing.
        restarts: How often a run that diverges goes back to its last good epoch and on from there, with fresh noise, no
            momentum and half the learning rate of the weights.
        eval_batch_size: Number of examples of an evaluation batch.
        test_every: Number of epochs from one evaluation of the test split to the next, beside those where its figures
            are used: at each validation loss that is less than all before, and at the end; 0 for these alone. It
            changes nothing but which reports have figures of the test split.
        hyper_optimizer: Optimizer of the raw coordinates and scales, given as `optimizer` is.
        hyper_lr: Learning rate of the raw coordinates and scales; "auto" lets a raw coordinate cross its domain within
            the run, whatever the number of hyper-steps, and is not less than the papers' .01.
        hyper_optimizer_args: Further keyword arguments of the hyper-optimizer. Default none.
        hyper_clip_norm: Largest norm of a hyper-step's gradient, or None for no limit.
        relative_hyper_lr: Whether a hyper-step moves the value by a share of its domain (as it does in the middle)
            wherever it is, instead of moving the raw coordinate, which turns into ever less near the ends.
        train_steps: Number of training steps of a cycle (T_train).
        valid_steps: Number of hyper-steps of a cycle (T_valid).
        warmup_epochs: Number of epochs before the first hyper-step.
        scale: Start value of the perturbation scales, in raw units; tuned ones stay within 0.01 to 2.
        tune_scales: Whether the hyper-step tunes the scales; otherwise they stay.
        entropy_weight: Weight tau of the entropy of the perturbation in the hyper-step's loss.
        response_share: Share of a batch that a response step of Delta-STN uses.
        response: "full", a rank, "gate", a mapping from module path to one of these, or "auto": the default of the
            algorithm.
        response_origin: The response input of STN at the start values: it is the raw coordinate, moved so that it has
            this value there. None is the form of the papers, the raw coordinate itself.
        shrink_gates: Whether the response input of STN is divided by the square root of the number of hyperparameters
            if all responses are gates. False is the form of the papers.

    Raises:
        ValueError: a setting is outside what it accepts; the message names it.
    """

    epochs: int = 50
    batch_size: int = 128
    optimizer: OptimizerChoice = "SGD"
    lr: float = 0.01
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    lr_schedule: ScheduleChoice | None = None
    lr_schedule_args: Mapping[str, Any] = field(default_factory=dict)
    patience: int | None = None
    keep_best: bool = False
    clip_norm: float | None = None
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    restarts: int = 1
    eval_batch_size: int = 500
    test_every: int = 0
    hyper_optimizer: OptimizerChoice = "RMSprop"
    hyper_lr: float | Literal["auto"] = "auto"
    hyper_optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    hyper_clip_norm: float | None = 1.0
    relative_hyper_lr: bool = False
    train_steps: int = 5
    valid_steps: int = 1
    warmup_epochs: int = 2
    scale: float = 1.0
    tune_scales: bool = True
    entropy_weight: float = 1e-3
    response_share: float = 1.0
    response: Literal["auto"] | ResponseSize | Mapping[str, ResponseSize | None] = "auto"
    response_origin: float | None = -3.0
    shrink_gates: bool = True

    def __post_init__(self) -> None:
        for setting in fields(self):
            if isinstance(value := getattr(self, setting.name), np.generic):
                object.__setattr__(self, setting.name, value.item())  # a number is a number, out of a data frame too
        for name in ("epochs", "batch_size", "accumulate", "eval_batch_size", "train_steps", "valid_steps"):
            _check_integer(name, getattr(self, name), least=1)
        for name in ("warmup_epochs", "restarts", "test_every"):
            _check_integer(name, getattr(self, name), least=0)
        if self.patience is not None:
            _check_integer("patience", self.patience, least=1)
        for name in ("lr", "scale", "response_share"):
            _check_number(name, getattr(self, name), least=0.0, exclusive=True)
        if self.hyper_lr != "auto":
            _check_number("hyper_lr", self.hyper_lr, least=0.0, exclusive=True, otherwise=", or 'auto'")
        if self.response_share > 1:
            raise ValueError(f"response_share={self.response_share!r}: accepted is a number above 0, at most 1")
        _check_number("entropy_weight", self.entropy_weight, least=0.0)
        for name in ("clip_norm", "hyper_clip_norm"):
            if (value := getattr(self, name)) is not None:
                _check_number(name, value, least=0.0, exclusive=True)
        if self.response_origin is not None:
            _check_number("response_origin", self.response_origin)
        for name in (
            "tune_scales",
            "compile",
            "cuda_graphs",
            "relative_hyper_lr",
            "keep_best",
            "shrink_gates",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted are true and false")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision={self.precision!r}: accepted are 'float32' and 'bfloat16'")
        for name in ("optimizer", "hyper_optimizer"):
            _check_named(name, getattr(self, name), torch.optim, torch.optim.Optimizer)
        if self.lr_schedule is not None:
            _check_named(
                "lr_schedule",
                self.lr_schedule,
                torch.optim.lr_scheduler,
                torch.optim.lr_scheduler.LRScheduler,
            )
        for name in ("optimizer_args", "lr_schedule_args", "hyper_optimizer_args"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted is a mapping such as {{'momentum': 0.9}}")
            _check_arguments(name, getattr(self, name.removesuffix("_args")), getattr(self, name))
        if isinstance(self.response, Mapping):
            for size in self.response.values():
                if size is not None:
                    check_response_size(size, ", and None for a layer without")
        elif self.response != "auto":
            check_response_size(self.response, NO_RESPONSE)

    def make_optimizer(self, parameters: list[nn.Parameter] | list[dict[str, Any]]) -> torch.optim.Optimizer:
        """An optimizer of the weights over `parameters`, or over groups of them."""
        return self._optimizer(self.optimizer)(parameters, lr=self.lr, **self.optimizer_args)

    def hyper_steps(self, steps_per_epoch: int) -> int:
        """Hyper-steps of a whole run of so many training steps an epoch."""
        return max(self.epochs - self.warmup_epochs, 0) * steps_per_epoch // self.train_steps * self.valid_steps

    def why_no_hyper_step(self, steps_per_epoch: int) -> str:
        """Why a whole run of so many training steps an epoch has no hyper-step; empty where it has one."""
        if self.hyper_steps(steps_per_epoch):
            return ""
        return (
            f"a run of {self.epochs} epochs of {steps_per_epoch} training steps, the first {self.warmup_epochs} of "
            f"them warm-up, is over before its first hyper-step, which comes after {self.train_steps} training steps"
        )

    def step_size(self, hyper_steps: int) -> float:
        """The step size of the raw coordinates in a run of so many hyper-steps."""
        return max(LEAST_HYPER_LR, DOMAIN / max(hyper_steps, 1)) if self.hyper_lr == "auto" else self.hyper_lr

    def make_hyper_optimizer(self, parameters: list[nn.Parameter], *, hyper_steps: int) -> torch.optim.Optimizer:
        """An optimizer of the raw coordinates and scales for a run of so many hyper-steps."""
        return self._optimizer(self.hyper_optimizer)(
            parameters, lr=self.step_size(hyper_steps), **self.hyper_optimizer_args
        )

    def _optimizer(self, choice: OptimizerChoice) -> Callable[..., torch.optim.Optimizer]:
        if not isinstance(choice, str):
            return choice
        kind = getattr(torch.optim, choice)
        return kind if self.compile else light(kind)

    def make_lr_schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        """The learning-rate schedule of one optimizer, or None."""
        if self.lr_schedule is None:
            return None
        return _make(self.lr_schedule, torch.optim.lr_scheduler)(optimizer, **self.lr_schedule_args)  # type: ignore[no-any-return]


def _check_integer(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: accepted is an integer of {least} or more")


def _check_number(
    name: str, value: object, *, least: float | None = None, exclusive: bool = False, otherwise: str = ""
) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    bound = "" if least is None else f" {'above' if exclusive else 'of at least'} {least:g}"
    if not ok or (least is not None and not (value > least if exclusive else value >= least)):  # type: ignore[operator]
        raise ValueError(f"{name}={value!r}: accepted is a finite number{bound}{otherwise}")


def _check_named(
    name: str,
    choice: object,
    module: Any,
    base: type[torch.optim.Optimizer] | type[torch.optim.lr_scheduler.LRScheduler],
) -> None:
    if callable(choice):
        return
    found = _find(choice, module) if isinstance(choice, str) else None
    if not (isinstance(found, type) and issubclass(found, base)):
        ours = [known for known, kind in LR_SCHEDULES.items() if issubclass(kind, base)]
        kinds = {known: kind for known, kind in vars(module).items() if isinstance(kind, type)}
        names = [*ours, *(known for known, kind in kinds.items() if issubclass(kind, base))]
        folded = {known.casefold(): known for known in names}
        near = difflib.get_close_matches(str(choice).casefold(), folded, n=1)
        meant = f"; did you mean {folded[near[0]]!r}?" if near else ""
        accepted = "".join(f"{known}, " for known in ours)
        raise ValueError(
            f"{name}={choice!r}: accepted is {accepted}the name of a class in {module.__name__}, or a callable{meant}"
        )
    _, *needed = inspect.signature(found.step).parameters.values()
    # The loop steps a schedule with nothing, and a plateau with the validation loss.
    if any(p.default is p.empty for p in needed if p.name != "metrics"):
        raise ValueError(f"{name}={choice!r}: its step needs {needed[0].name!r}, which the training loop has not")


def _check_arguments(name: str, choice: object, arguments: Mapping[str, Any]) -> None:
    """Hold the arguments of a class of torch against its signature; those of a callable are its own affair."""
    if not isinstance(choice, str):
        return
    module, given = (torch.optim.lr_scheduler, {}) if name.startswith("lr_schedule") else (torch.optim, {"lr": 1.0})
    try:
        inspect.signature(_find(choice, module)).bind(None, **given, **arguments)
    except TypeError as error:
        raise ValueError(f"{name}={dict(arguments)!r} do not fit {choice}: {error}") from None


def _make(choice: str | Callable[..., Any], module: Any) -> Callable[..., Any]:
    return _find(choice, module) if isinstance(choice, str) else choice


def _find(name: str, module: Any) -> Any:
    return LR_SCHEDULES.get(name) or getattr(module, name, None)
