"""A population of self-tuning trials that are compared at equal cost; the worst go on from where the best are."""

from __future__ import annotations

import math
from typing import Any

from tune_stn.methods.method import Context, Plan
from tune_stn.methods.pbt import LEAST_POPULATION
from tune_stn.methods.random import Draws
from tune_stn.methods.stn import EPOCH_COST
from tune_stn.tuning.scheduler import STNScheduler

COMPARISONS = 4  # in a full trial, at least
# Of a trial: those since its last comparison, for the trial that takes over from it there.
KEPT_CHECKPOINTS = 8


class PopulationFirst(Draws):
    """Random draws after the task's start values: the members of a population, and when all have ended, one at a time.

    The comparisons stop members so that the budget lasts the others to their end; what is left then is for these.

    Args:
        size: Number of members of the population.
        context: Context of the run.
    """

    def __init__(self, size: int, context: Context) -> None:
        super().__init__(context)
        self.size = size
        self.made = 0

    def next_trial(self) -> Any:
        if self.made >= self.size and self.alive:
            return None
        trial = super().next_trial()
        if trial is not None:
            self.made += 1
        return trial


def plan(context: Context) -> Plan:
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
    size = context.trials or max(LEAST_POPULATION, paid)
    return Plan(
        search_alg=PopulationFirst(size, context),
        samples=context.trials or size + context.samples(context.epochs),
        hp=context.task.space.to_tune(),
        scheduler=scheduler,
        kept_checkpoints=KEPT_CHECKPOINTS,
    )
