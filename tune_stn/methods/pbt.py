"""Population-based training (Jaderberg et al. 2017, arXiv 1711.09846), Ray Tune's scheduler."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from tune_stn.methods.method import MODE, Context, Plan
from tune_stn.methods.random import Draws

LEAST_POPULATION = 4  # quartiles of fewer trials are empty
PERTURBATIONS = 10  # times that a full trial may be replaced by a better one
# Of a member. A copy is of the checkpoint from its last perturbation, and may wait for a free place until the member
# comes to its next one, but no longer, because members that are behind run first. By then the member has saved at most
# seven more: its own pauses at both ends, at most four of Tune's regular ones, and the next one for copies. (Were the
# checkpoint gone after all, the copy would be of the member's newest: see `STNTrainable.restore`.)
KEPT_CHECKPOINTS = 10


def plan(context: Context) -> Plan:
    space = context.task.space

    def inside_domains(config: dict[str, Any]) -> dict[str, Any]:
        """Multiplying a value by 1.2 may take it out of its domain: bring it back to the nearest member."""
        values = {name: type(value)(space[name].nearest(value)) for name, value in config["hp"].items()}
        return {**config, "hp": values}

    scheduler = PopulationBasedTraining(
        # Multiplied by 0.8 or 1.2, in any domain, or drawn anew, in log space where the domain is logarithmic.
        hyperparam_mutations={"hp": space.to_tune()},
        custom_explore_fn=inside_domains,
        **population_settings(context),
    )
    return population_plan(context, scheduler)


def population_settings(context: Context) -> dict[str, Any]:
    """What Ray's PBT and PB2 have in common: when members are compared, and by what."""
    return {
        "time_attr": "epoch",
        "metric": "val_loss",  # of the present weights: the best so far would reward a member for its past
        "mode": MODE,
        "perturbation_interval": max(1, context.epochs // PERTURBATIONS),
        "log_config": False,
    }


def population_plan(context: Context, scheduler: TrialScheduler) -> Plan:
    """As many members as the budget pays, the start values among them; seeds what the scheduler draws from.

    Ray's PBT and PB2 take no seed but draw from the global generators of Python and numpy. With these seeded, what they
    draw follows from the order in which members report.
    """
    random.seed(context.seed)
    np.random.seed(context.seed % 2**32)  # noqa: NPY002
    return Plan(
        search_alg=Draws(context),
        samples=context.trials or max(LEAST_POPULATION, context.full_trials),
        hp=context.task.space.to_tune(),
        scheduler=scheduler,
        kept_checkpoints=KEPT_CHECKPOINTS,
    )
