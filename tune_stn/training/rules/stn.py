"""Self-Tuning Networks (MacKay et al., ICLR 2019, arXiv 1903.03088, algorithm 1); side by side in docs/algorithms.md.

The network's weights are a function of its hyperparameters, w_phi(lambda), with parameters phi: those of the base
layers and those of their response. The response input is the raw coordinate lambda.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from tune_stn.nn.response import ResponseSize
from tune_stn.training.rules.rule import AnyBatch, Rule


class STN(Rule):
    """Base and response parameters learn together, at hyperparameters drawn afresh for each example and step."""

    name = "stn"
    tunes = True
    centred = False
    response: ClassVar[ResponseSize | None] = "gate"
    why = "as good as a full response in experiments/response_size.py, at half the cost"
    trains = ("base", "response")

    def training_losses(self, batch: AnyBatch) -> Iterator[Tensor]:
        """f(lambda + eps, w_phi(lambda + eps)), in parts of the batch."""
        sample = self.perturbed(batch)  # lambda + eps, eps ~ p(eps | sigma), one for each example
        for part, share in batch.parts(self.training.accumulate):
            yield share * self.training_loss(part, sample.rows(part.rows))

    def train_step(self, batch: AnyBatch) -> Tensor:
        """phi <- phi - alpha_1 d/dphi f(lambda + eps, w_phi(lambda + eps))"""
        with self.meter.step("train"):
            phi = ("base", "response")
            loss = self.stepper.backward(self.training_losses, batch, to=phi, clip_norm=self.training.clip_norm)
            self.stepper.step(*phi)
        return loss

    def validation_losses(self, batch: AnyBatch) -> Iterator[Tensor]:
        """F(lambda + eps, w_phi(lambda + eps)) - tau H (eq. 16), in parts; at eps = 0 if sigma is fixed."""
        tau = self.training.entropy_weight
        for part, share in batch.parts(self.training.accumulate):
            if self.training.tune_scales:
                sample = self.perturbed(part, keep_graph=True)
                loss = self.validation_loss(part, sample) - tau * self.hyper.entropy()
            else:
                loss = self.validation_loss(part, self.model.mean_sample(keep_graph=True))
            yield share * loss

    def hyper_step(self, batch: AnyBatch) -> None:
        """lambda, sigma <- descent of F(lambda + eps, w_phi(lambda + eps)) - tau H[p(eps | sigma)]"""
        with self.meter.step("hyper"):
            clip_norm = self.training.hyper_clip_norm
            self.stepper.backward(self.validation_losses, batch, to=("hyper",), clip_norm=clip_norm)
            with self.hyper.within_domains(relative=self.training.relative_hyper_lr):
                self.stepper.step("hyper")
