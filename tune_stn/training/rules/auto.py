"""The project's own rule: how much regularisation there is by the progress ratio, shared out in equal doses.

The dose of a hyperparameter is what raising its raw coordinate by one adds to the training loss. In raw coordinates,
hyperparameters that differ in kind are not comparable: a rotation by 30 degrees can undo what a dropout of a half does
not touch. Steps in inverse proportion to the dose let each add the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tune_stn.nn.first_order import without_running_statistics
from tune_stn.space.sample import Sample
from tune_stn.training.rules.progress_ratio import ProgressRatio
from tune_stn.training.rules.rule import AnyBatch, Tools
from tune_stn.training.seeds import own_draws

# A dose is the difference between raw coordinates so far above and below the present one.
DISTANCE = 0.5
# Share of a batch on which it is measured, and how much of a new measurement enters the average.
SHARE, RATE = 0.25, 0.1


class Auto(ProgressRatio):
    """The common step of `progress-ratio`, less for hyperparameters of a large dose."""

    name = "auto"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.doses = torch.zeros(len(self.hyper.space), dtype=torch.float32)
        self.counts = [0] * len(self.hyper.space)

    def direction(self, batch: AnyBatch) -> Tensor:
        """min(1, median dose / dose), shape `(n,)`; the same for all until each dose has been measured."""
        self.measure(sum(self.counts) % len(self.counts), batch)
        above = self.doses[self.doses > 0]
        if 0 in self.counts or not len(above):
            return torch.ones_like(self.hyper.raw)
        middle = self.doses.median()
        if middle <= 0:  # what does nothing at present is no measure for what does
            middle = above.median()
        doses = self.doses.clamp(min=torch.finfo(torch.float32).tiny)
        return (middle / doses).clamp(max=1.0).to(self.hyper.raw)

    def measure(self, index: int, batch: AnyBatch) -> None:
        """Measure one dose on a part of a training batch, with the same draws on both sides."""
        part = batch.part(0, max(2, round(SHARE * len(batch)))).unread()  # of one example, batch norms make no mean
        losses = []
        with without_running_statistics(self.model):
            for side in (DISTANCE, -DISTANCE):
                raw = self.hyper.raw.detach().clone()
                raw[index] += side
                with own_draws(raw.device):
                    losses.append(float(self.training_loss(part, Sample(self.hyper.values(raw[None])))))
        self.counts[index] += 1
        rate = max(RATE, 1 / self.counts[index])
        self.doses[index] += rate * ((losses[0] - losses[1]) / (2 * DISTANCE) - self.doses[index])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "doses": self.doses, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.doses, self.counts = state["doses"].cpu(), list(state["counts"])
