"""Self-Tuning Networks (MacKay et al., ICLR 2019, arXiv 1903.03088, algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from tune_stn.data.splits import Split
from tune_stn.nn.response import ResponseSize
from tune_stn.training.cost import CostMeter
from tune_stn.training.learner import Learner


class STN:
    """Base and response parameters learn together, at hyperparameters drawn afresh for each example and step."""

    name = "stn"
    tunes = True
    centred = False
    response: ResponseSize | None = "gate"
    why = "as good as a full response in experiments/response_size.py, at half the cost"

    def train_step(self, learner: Learner, batch: Split, meter: CostMeter) -> Tensor:
        with meter.step("train"):
            return learner.step_weights(batch, learner.model.perturbed_sample, "base", "response")
