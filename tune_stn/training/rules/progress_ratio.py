"""One number for all hyperparameters: how much regularisation there is, set by what validation gains of what training
gains. No response, no gradient with respect to a hyperparameter; side by side in docs/algorithms.md.

The weights train as those of a plain network do, at the present values. So a placebo changes nothing, a run without
hyper-steps is a plain run, and its schedule replayed on a plain network is the run itself, to the last bit.

Two running averages of the weights, a fast and a slow one, say what the last part of training has brought. Where it
brings validation as much as training, the network learns what generalises, and less regularisation lets it learn more.
Where it brings validation less, the network has begun to learn its examples by heart: long before the validation loss
turns, at a time when the gradient of that loss sees nothing to gain (experiments/rules.py, experiments/results/rules).

All time constants are shares of the run, so that a run ten times as long does the same, ten times as slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tune_stn.nn.first_order import clean_mode
from tune_stn.training.rules.fixed import Fixed
from tune_stn.training.rules.rule import AnyBatch, Tools

# The averages of the weights look back over these shares of the run's training steps.
FAST, SLOW = 0.02, 0.07
# The gains are averaged over the first share of the run's measurements, and in units of their size over the second.
SMOOTHED, SCALED = 0.02, 0.1
# Validation is to gain this share of what training gains, each in proportion to its loss.
TARGET = 0.6
# A shortfall by half of the recent size of the gains asks for full speed.
GAIN = 2.0
# Training steps between measurements, at least: four forward passes then cost a quarter of a plain step for each step.
EVERY = 5
# A mean speed of a third crosses a domain, from a twentieth to nineteen twentieths of it, in one run.
SPEED = 3.0
# A network is trapped where training has gained less than this since the beginning, gains less than this now, and
# validation and training losses differ by less than this, each in proportion to the loss.
TRAPPED_PROGRESS, TRAPPED_GAIN, TRAPPED_GAP = 0.5, 0.2, 0.1
# Then hyperparameters fall, at so many times the speed.
ESCAPE = 2.0
# In runs of fewer measurements than 60, though, a step that has not been seen to be too long is not taken.
LARGEST_STEP = 0.3


class ProgressRatio(Fixed):
    """Every raw coordinate moves by the same step, up where validation gains less than its share."""

    name = "progress-ratio"
    tunes = True

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        weights = self.stepper.parameters("base")
        self.fast = [weight.detach().clone() for weight in weights]
        self.slow = [weight.detach().clone() for weight in weights]
        self.done = 0  # training steps
        self.measured = 0
        self.since = 0
        # Of validation and of training, from the slow average to the fast one; on the CPU, whatever the network is on.
        self.gains = torch.zeros(2, dtype=torch.float32)
        self.size = 0.0  # mean square of the gains
        self.gap = 0.0  # of the validation loss over the training loss, at the fast average
        self.first: float | None = None  # training loss before the first step
        self.batch: AnyBatch | None = None

    def train_step(self, batch: AnyBatch) -> Tensor:
        """w <- w - alpha d/dw f(lambda, w), the step of a plain network; and the averages follow."""
        self.before_step(batch)
        loss = super().train_step(batch)
        self.after_step(batch)
        return loss

    def before_step(self, batch: AnyBatch) -> None:
        """The training loss in the beginning."""
        if self.first is None:
            with torch.no_grad(), clean_mode(self.model):
                self.first = float(self.clean(batch.unread()))

    def after_step(self, batch: AnyBatch) -> None:
        """The averages of the weights follow."""
        weights: list[Tensor] = [*self.stepper.parameters("base")]
        with torch.no_grad():
            torch._foreach_lerp_(self.fast, weights, 1 / self.window(FAST, self.steps))
            torch._foreach_lerp_(self.slow, weights, 1 / self.window(SLOW, self.steps))
        self.batch = batch
        self.done += 1
        self.since += 1

    @property
    def due(self) -> bool:
        return self.since >= EVERY

    def hyper_step(self, batch: AnyBatch) -> None:
        """lambda <- lambda + speed * ((1 - trapped) * pressure * direction - 2 * trapped)"""
        self.since = 0
        assert self.batch is not None
        with self.meter.step("hyper"), torch.no_grad():
            pressure, trapped = self.pressure(batch, self.batch)
            step = (1 - trapped) * pressure * self.direction(self.batch) - ESCAPE * trapped
            self.hyper.raw.add_(self.speed * step)
            self.hyper.confine()

    def pressure(self, valid: AnyBatch, train: AnyBatch) -> tuple[float, float]:
        """How much more regularisation is asked for, from -1 to 1, and how far the network is trapped, from 0 to 1.

        A gain is the fall of a loss from the slow average to the fast one, in proportion to that loss: so it tells
        learning by heart even where the training loss is next to nothing. With the gains v of validation and t of
        training, in units of their recent size: where training goes on (t > 0), `TARGET * t - v`, of which v counts as
        t at most, as validation gains more by chance alone. Where training is undone (t < 0), v itself: regularisation
        that costs validation is too much.

        A network may be regularised so strongly that it learns nothing. Then neither loss moves, so the gains say
        nothing; both are what they were in the beginning, and the same, for nothing is learned by heart. That tells it
        from the end of training.
        """
        with clean_mode(self.model):
            with self.at(self.fast):
                after = torch.stack([self.clean(valid), self.clean(train.unread())])
            with self.at(self.slow):
                before = torch.stack([self.clean(valid.unread()), self.clean(train.unread())])
        gains = difference(before, after).nan_to_num()  # a loss of 0 on both sides gains nothing
        gap = float(difference(after[0], after[1]).nan_to_num(1.0))  # and does not say that the network is trapped
        self.measured += 1
        keep = 1 - 1 / self.window(SMOOTHED, self.measurements)
        self.gains = torch.lerp(gains, self.gains, keep)
        self.gap = (1 - keep) * gap + keep * self.gap
        keep_size = 1 - 1 / self.window(SCALED, self.measurements)
        self.size += (1 - keep_size) * (float(gains.square().mean()) - self.size)
        size = math.sqrt(self.size / (1 - keep_size**self.measured)) + torch.finfo(torch.float32).tiny
        valid_gain, train_gain = (float(gain) / (1 - keep**self.measured) for gain in self.gains)
        v, t = valid_gain / size, train_gain / size
        moving = min(1.0, 3 * abs(t))  # where training stands still, the sign of t is chance
        asked = moving * (TARGET * t - min(v, t) if t > 0 else v)
        pressure = max(-1.0, min(1.0, GAIN * asked))
        gap = self.gap / (1 - keep**self.measured)
        if self.done < 2 * self.window(SLOW, self.steps):
            return pressure, 0.0  # the averages still hold the initial weights
        assert self.first is not None
        progress = difference(torch.tensor(self.first), after[1].cpu()).nan_to_num(1.0)
        trapped = ramp_down(TRAPPED_PROGRESS, float(progress))
        trapped *= ramp_down(TRAPPED_GAIN, abs(train_gain)) * ramp_down(TRAPPED_GAP, gap)
        return pressure, trapped

    def direction(self, batch: AnyBatch) -> Tensor:
        """The relative steps of the raw coordinates, shape `(n,)`, from 0 to 1: here all the same."""
        return torch.ones_like(self.hyper.raw)

    def clean(self, batch: AnyBatch) -> Tensor:
        """The loss without any regularisation, inside `clean_mode`."""
        return self.bare_loss(batch, self.hyper.constant_sample())

    @contextmanager
    def at(self, average: list[Tensor]) -> Iterator[None]:
        """Inside the block, the network has these weights."""
        weights = [weight.data for weight in self.stepper.parameters("base")]
        own = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, average)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)

    @property
    def measurements(self) -> int:
        """Measurements of the whole run."""
        return max(1, self.steps // max(EVERY, self.training.train_steps))

    @property
    def speed(self) -> float:
        """Largest step of a raw coordinate."""
        speed = SPEED * self.training.step_size(self.measurements)
        return min(speed, LARGEST_STEP) if self.training.hyper_lr == "auto" else speed

    @staticmethod
    def window(share: float, of: int) -> float:
        """Length of a running average, 1 or more."""
        return max(1.0, share * of)

    def state_dict(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in ("fast", "slow", "done", "measured", "since", "gains", "size", "gap", "first")
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("fast", "slow"):
            torch._foreach_copy_(getattr(self, name), state[name])
        for name in ("done", "measured", "since", "size", "gap", "first"):
            setattr(self, name, state[name])
        self.gains = state["gains"].cpu()  # a checkpoint comes to the device of the run


def difference(one: Tensor, other: Tensor) -> Tensor:
    """How much less the other loss is, in proportion to the mean size of the two; on the CPU."""
    return (2 * (one - other) / (one.abs() + other.abs())).float().cpu()


def ramp_down(bound: float, value: float) -> float:
    """1 at 0 and below, 0 at the bound and above, straight in between."""
    return min(1.0, max(0.0, 1 - value / bound))
