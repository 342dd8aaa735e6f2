"""A population of self-tuning trials that are compared at equal cost; the worst go on from where the best are."""

from __future__ import annotations

import math

from tune_stn.methods.method import Context, Method, Plan, random_draws
from tune_stn.tuning.scheduler import STNScheduler

LEAST_POPULATION = 4  # a quartile of fewer is nobody
# What an epoch of a self-tuning trial costs at least, in plain ones; up to twice as much (experiments/step_cost.py).
EPOCH_COST = 1.5
COMPARISONS = 4  # in a full trial, at least
# Of a trial: those since its last comparison, for whoever takes over from it there.
KEPT_CHECKPOINTS = 8


def _plan(context: Context) -> Plan:
    # As many members as full trials are paid if epochs are cheap. If not, or if there are more members than that, the
    # scheduler stops losers, instead of restarting them, until the budget lasts the others to their end.
    paid = math.ceil(context.full_trials / EPOCH_COST)
    interval = EPOCH_COST * context.epochs / COMPARISONS
    finite = math.isfinite(context.budget)
    scheduler = STNScheduler(
        interval=interval,
        # In the warm-up, nothing is tuned yet: a comparison would be one of start values.
        grace_period=2 * EPOCH_COST * context.task.training.warmup_epochs,
        budget=context.budget if finite else None,
        epochs=context.epochs if finite else None,
    )
    return Plan(
        search_alg=random_draws(context),
        samples=context.trials or max(LEAST_POPULATION, paid),
        hp=context.task.space.to_tune(),
        scheduler=scheduler,
        kept_checkpoints=KEPT_CHECKPOINTS,
    )


STN_POPULATION = Method(
    "stn-population", "population of self-tuning trials: losers take over from winners, with wider scales", "stn", _plan
)
