"""Delta-STN (Bae and Grosse, NeurIPS 2020, arXiv 2010.13514, algorithm 1); side by side in docs/algorithms.md.

The network's weights are w_0 + Theta (lambda' - lambda) at hyperparameters lambda' near the present ones: the response
input is the offset, so at the present hyperparameters the network is the base network itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from tune_stn.nn.first_order import constants, without_running_statistics
from tune_stn.nn.response import ResponseSize
from tune_stn.training.rules.rule import AnyBatch, Rule


class DeltaSTN(Rule):
    """The base parameters learn at the mean hyperparameters, the response by a linearised prediction around it."""

    name = "delta-stn"
    tunes = True
    centred = True
    response: ClassVar[ResponseSize | None] = 8
    why = "as good as a full response in experiments/response_size.py and cheaper; gates alone did worse"
    trains = ("base",)

    def base_losses(self, batch: AnyBatch) -> Iterator[Tensor]:
        """f(lambda, w_0), in parts of the batch: that of a plain network."""
        sample = self.model.hyper.constant_sample()
        for part, share in batch.parts(self.training.accumulate):
            yield share * self.training_loss(part, sample)

    def base_step(self, batch: AnyBatch) -> Tensor:
        """w_0 <- w_0 - alpha_1 d/dw_0 f(lambda, w_0)"""
        loss = self.stepper.backward(self.base_losses, batch, to=("base",), clip_norm=self.training.clip_norm)
        self.stepper.step("base")
        return loss

    def response_losses(self, batch: AnyBatch) -> Iterator[Tensor]:
        """f(lambda + eps, y(w_0) + J Theta eps), in parts of the batch."""
        sample = self.perturbed(batch, linearise=True)  # lambda + eps, eps ~ p(eps | sigma)
        for part, share in batch.parts(self.training.accumulate):
            yield share * self.training_loss(part, sample.rows(part.rows))

    def response_step(self, batch: AnyBatch) -> None:
        """Theta <- Theta - alpha_2 d/dTheta f(lambda + eps, y(w_0) + J Theta eps), w_0 constant (eq. 9)

        The response is a regression of its own, with its own noise: a share of the batch is enough for it.
        """
        # Of one example, batch norms make no mean.
        some = batch.part(0, max(2, math.ceil(self.training.response_share * len(batch))))
        with constants(self.stepper.parameters("base")), without_running_statistics(self.model):
            self.stepper.backward(self.response_losses, some, to=("response",), clip_norm=self.training.clip_norm)
            self.stepper.step("response")

    def train_step(self, batch: AnyBatch) -> Tensor:
        """A step of w_0, then one of Theta on the same batch."""
        with self.meter.step("train"):
            loss = self.base_step(batch)
        self.after_step(batch)
        return loss

    def after_step(self, batch: AnyBatch) -> None:
        """The step of Theta."""
        with self.meter.step("response"):
            self.response_step(batch)

    def validation_losses(self, batch: AnyBatch) -> Iterator[Tensor]:
        """F(lambda + eps, w_0 + Theta eps) - tau H, in parts of the batch; at eps = 0 if sigma is fixed.

        The network is not linearised here. The gradient reaches lambda through the offset alone, whose centre is held.
        """
        tau = self.training.entropy_weight
        for part, share in batch.parts(self.training.accumulate):
            if self.training.tune_scales:
                sample = self.perturbed(part, keep_graph=True)
                loss = self.validation_loss(part, sample) - tau * self.hyper.entropy()
            else:
                loss = self.validation_loss(part, self.model.mean_sample(keep_graph=True))
            yield share * loss

    def hyper_step(self, batch: AnyBatch) -> None:
        """lambda, sigma <- descent of F(lambda + eps, w_0 + Theta eps) - tau H[p(eps | sigma)]"""
        with self.meter.step("hyper"):
            clip_norm = self.training.hyper_clip_norm
            self.stepper.backward(self.validation_losses, batch, to=("hyper",), clip_norm=clip_norm)
            with self.hyper.within_domains(relative=self.training.relative_hyper_lr):
                self.stepper.step("hyper")
