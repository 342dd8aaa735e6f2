"""Population-based training (Jaderberg et al. 2017, arXiv 1711.09846), Ray Tune's scheduler."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining

from tune_stn.methods.method import MODE, Context, Method, Plan, random_draws

LEAST_POPULATION = 4  # quartiles of fewer trials are empty
PERTURBATIONS = 10  # times that a full trial may be replaced by a better one


def _plan(context: Context) -> Plan:
    space = context.task.space
    # Ray's PBT takes no seed: it draws from these two.
    random.seed(context.seed)
    np.random.seed(context.seed % 2**32)  # noqa: NPY002

    def inside_domains(config: dict[str, Any]) -> dict[str, Any]:
        """Multiplying a value by 1.2 may take it out of its domain: bring it back to the nearest member."""
        values = {name: type(value)(space[name].nearest(value)) for name, value in config["hp"].items()}
        return {**config, "hp": values}

    scheduler = PopulationBasedTraining(
        time_attr="epoch",
        metric="val_loss",  # of the present weights: the best so far would reward a member for its past
        mode=MODE,
        perturbation_interval=max(1, context.epochs // PERTURBATIONS),
        hyperparam_mutations={"hp": space.to_tune()},
        custom_explore_fn=inside_domains,
        log_config=False,
    )
    return Plan(
        search_alg=random_draws(context),
        samples=context.trials or max(LEAST_POPULATION, context.full_trials),
        hp=space.to_tune(),
        scheduler=scheduler,
        kept_checkpoints=None,  # a copy may come after its original has gone on and saved again
    )


PBT = Method("pbt", "population-based training over as many members as the budget pays", "fixed", _plan, restores=False)
