"""Bayesian optimisation with a Gaussian process, through Optuna's sampler in Ray Tune's OptunaSearch."""

from __future__ import annotations

import warnings

import optuna
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from tune_stn.methods.method import METRIC, MODE, Context, Method, Plan, start_point
from tune_stn.space import LogUniform, Normal

# Optuna's default of 10 random trials would leave a small budget no trial to model.
MOST_RANDOM_TRIALS = 10


def _plan(context: Context) -> Plan:
    space = context.task.space
    for name, domain in space.items():
        if isinstance(domain, Normal) or (isinstance(domain, LogUniform) and domain.step is not None):
            raise ValueError(
                f"gp-bo cannot search {name!r} over {domain.describe()}: accepted are uniform, integer and unstepped "
                "log domains"
            )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(
            seed=context.seed, n_startup_trials=min(MOST_RANDOM_TRIALS, max(2, context.full_trials // 3))
        )
    start = {f"hp/{name}": value for name, value in start_point(context.task).items()}
    search = OptunaSearch(metric=METRIC, mode=MODE, sampler=sampler, points_to_evaluate=[start])
    return Plan(
        search_alg=ConcurrencyLimiter(search, max_concurrent=context.slots),
        samples=context.samples(1),
        hp=space.to_tune(),
    )


GP_BO = Method("gp-bo", "Bayesian optimisation with a Gaussian process over full trials", "fixed", _plan)
