"""Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), Ray Tune's scheduler.

Ray's is the stopping variant: a trial that is not among the best third of those that came to its rung before it ends
there, and is not promoted later. It takes no seed and needs none: given the draws, which are seeded, the order in which
trials report decides.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from tune_stn.methods.hyperband import REDUCTION_FACTOR
from tune_stn.methods.method import METRIC, MODE, Context, Plan
from tune_stn.methods.random import Draws

# With the reduction factor of 3, rungs are at a 27th, a 9th and a 3rd of a full trial, or a little before.
FIRST_RUNG = 27
WORST = 1e30  # a loss that can be averaged, unlike infinity


def plan(context: Context) -> Plan:
    scheduler = FiniteASHA(
        time_attr="epoch",
        metric=METRIC,
        mode=MODE,
        max_t=context.epochs,
        grace_period=max(1, context.epochs // FIRST_RUNG),
        reduction_factor=REDUCTION_FACTOR,
    )
    return Plan(
        search_alg=Draws(context, concurrent=context.slots),
        samples=context.samples(1),
        hp=context.task.space.to_tune(),
        scheduler=scheduler,
    )


class FiniteASHA(AsyncHyperBandScheduler):
    """Ray's ASHA with finite losses: one trial that diverges makes the cutoff of its rung NaN, which stops no trial."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        loss = min(result.get(METRIC, WORST), WORST)
        super().on_trial_complete(tune_controller, trial, {**result, METRIC: loss})
