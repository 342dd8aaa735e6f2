"""Delta-STN (Bae and Grosse, NeurIPS 2020, arXiv 2010.13514, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from tune_stn.data.splits import Split
from tune_stn.nn.response import ResponseSize
from tune_stn.training.cost import CostMeter
from tune_stn.training.learner import Learner
from tune_stn.training.rules.fixed import plain_step


class DeltaSTN:
    """The base parameters learn at the mean hyperparameters, the response by a linearised prediction around it."""

    name = "delta-stn"
    tunes = True
    centred = True
    response: ResponseSize | None = 8
    why = "as good as a full response in experiments/response_size.py and cheaper; gates alone did worse"

    def train_step(self, learner: Learner, batch: Split, meter: CostMeter) -> Tensor:
        with meter.step("train"):
            loss = plain_step(learner, batch)
        with meter.step("response"):
            response_step(learner, batch)
        return loss


def response_step(learner: Learner, batch: Split) -> None:
    """Step the response parameters on the prediction `f(x; 0) + J_h f(x; 0) (lambda_b - lambda)` (eq. 9 there).

    Base parameters are constants, so backward runs through the tangents alone. A part of the batch is
    enough where the training says so (`response_share`): the response is a regression of its own, with its own noise.
    """
    model = learner.model
    size = math.ceil(learner.task.training.response_share * len(batch))
    with constants(learner.base), without_running_statistics(model):
        learner.step_weights(batch.part(0, size), partial(model.perturbed_sample, linearise=True), "response")


@contextmanager
def constants(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block, the parameters need no gradient."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def without_running_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the block, batch norms normalise by the batch but do not count it a second time."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
