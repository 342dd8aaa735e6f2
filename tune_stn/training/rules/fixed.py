"""Plain training at constant hyperparameters: what every baseline runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from tune_stn.nn.response import ResponseSize
from tune_stn.training.rules.rule import AnyBatch, Rule


class Fixed(Rule):
    """A plain network; its hyperparameters lambda stay."""

    name = "fixed"
    tunes = False
    centred = False
    response: ClassVar[ResponseSize | None] = None
    why = ""
    trains: ClassVar[tuple[str, ...] | None] = ("base",)

    def losses(self, batch: AnyBatch) -> Iterator[Tensor]:
        """f(lambda, w), in parts of the batch."""
        sample = self.model.hyper.constant_sample()
        for part, share in batch.parts(self.training.accumulate):
            yield share * self.training_loss(part, sample)

    def train_step(self, batch: AnyBatch) -> Tensor:
        """w <- w - alpha d/dw f(lambda, w)"""
        with self.meter.step("train"):
            loss = self.stepper.backward(self.losses, batch, to=("base",), clip_norm=self.training.clip_norm)
            self.stepper.step("base")
        return loss
