"""HyperBand (Li et al. 2018, arXiv 1603.06560), Ray Tune's scheduler."""

from __future__ import annotations

from ray.tune.schedulers import HyperBandScheduler

from tune_stn.methods.method import METRIC, MODE, Context, Plan
from tune_stn.methods.random import Draws

REDUCTION_FACTOR = 3  # the paper's eta


def plan(context: Context) -> Plan:
    scheduler = HyperBandScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode=MODE,
        max_t=context.epochs,
        reduction_factor=REDUCTION_FACTOR,
    )
    return Plan(
        search_alg=Draws(context),
        samples=context.samples(1),
        hp=context.task.space.to_tune(),
        scheduler=scheduler,
    )
