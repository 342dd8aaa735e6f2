"""What the loop asks of an update rule."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tune_stn.data.splits import Split
from tune_stn.nn.response import ResponseSize
from tune_stn.training.cost import CostMeter
from tune_stn.training.learner import Learner


class Rule(Protocol):
    """How one algorithm spends a training batch and, if it tunes, a validation batch.

    Attributes:
        name: as in `config["algorithm"]`.
        tunes: whether hyperparameters are a tunable state, stepped by `Learner.hyper_step`.
        centred: whether responses see the offset from the mean instead of the raw coordinate.
        response: default response size; None for a plain network.
        why: why that size, as a user may be told.
    """

    name: str
    tunes: bool
    centred: bool
    response: ResponseSize | None
    why: str

    def train_step(self, learner: Learner, batch: Split, meter: CostMeter) -> Tensor:
        """Step the weights on one batch, charging the meter; gives the detached training loss."""
        ...
