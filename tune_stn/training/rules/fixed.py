"""Plain training at constant hyperparameters: what every baseline runs."""

from __future__ import annotations

from torch import Tensor

from tune_stn.data.splits import Split
from tune_stn.nn.response import ResponseSize
from tune_stn.training.cost import CostMeter
from tune_stn.training.learner import Learner


class Fixed:
    """A plain network; its hyperparameters stay."""

    name = "fixed"
    tunes = False
    centred = False
    response: ResponseSize | None = None
    why = ""

    def train_step(self, learner: Learner, batch: Split, meter: CostMeter) -> Tensor:
        with meter.step("train"):
            return plain_step(learner, batch)


def plain_step(learner: Learner, batch: Split) -> Tensor:
    """One step of the base parameters at the mean hyperparameters with a zero response."""
    return learner.step_weights(batch, lambda rows: learner.model.hyper.constant_sample(), "base")
