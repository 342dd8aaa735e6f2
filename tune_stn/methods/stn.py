"""Self-tuning networks: trials that each tune themselves, as many side by side as the run has slots and budget for."""

from __future__ import annotations

import math

from ray.tune.search import ConcurrencyLimiter

from tune_stn.methods.method import METRIC, MODE, Context, Plan, start_point
from tune_stn.tuning.search import STNSearch

# What an epoch of a self-tuning trial costs at least, in plain ones; up to twice as much (experiments/step_cost.py).
EPOCH_COST = 1.5


def plan(context: Context) -> Plan:
    search = STNSearch(metric=METRIC, mode=MODE, seed=context.seed, start=start_point(context.task))
    return Plan(
        search_alg=ConcurrencyLimiter(search, max_concurrent=side_by_side(context)),
        samples=context.samples(context.epochs),
        hp=context.task.space.to_tune(),
    )


def side_by_side(context: Context) -> int:
    """Trials at a time: no more than the budget lasts to their end.

    What is left after the first ones goes into restarts that know how they ended, instead of cutting all of them short.
    """
    paid = (
        math.floor(context.budget / (EPOCH_COST * context.epochs)) if math.isfinite(context.budget) else context.slots
    )
    return max(1, min(context.slots, context.trials or paid))
