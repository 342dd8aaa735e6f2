"""Median stopping (Golovin et al. 2017, Google Vizier, section 3.2.2), Ray Tune's scheduler.

A trial ends when the best loss it has seen is worse than the median of the other trials' losses, each averaged over its
epochs so far. It takes no seed and needs none: given the draws, which are seeded, the order in which trials report
decides.
"""

from __future__ import annotations

import math

from ray.tune.schedulers import MedianStoppingRule

from tune_stn.methods.method import MODE, Context, Plan
from tune_stn.methods.random import Draws

GRACE = 10  # a tenth of a full trial: the first epochs say nothing, and would weigh on the averages of all later ones
LEAST_TRIALS = 3  # that a median is taken of


def plan(context: Context) -> Plan:
    scheduler = MedianStoppingRule(
        time_attr="epoch",
        metric="val_loss",  # the rule itself takes the best of one trial, and averages the others' losses
        mode=MODE,
        grace_period=max(1, context.epochs // GRACE),
        min_samples_required=LEAST_TRIALS,
        min_time_slice=math.inf,  # type: ignore[arg-type]  # no pauses while there are too few trials to compare with
    )
    return Plan(
        search_alg=Draws(context, concurrent=context.slots),
        samples=context.samples(1),
        hp=context.task.space.to_tune(),
        scheduler=scheduler,
    )
