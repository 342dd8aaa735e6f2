"""What the methods share that search through Ray Tune's OptunaSearch with one of Optuna's samplers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import optuna
from optuna.samplers import GPSampler, TPESampler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from tune_stn.methods.method import METRIC, MODE, Context, Plan, start_point
from tune_stn.space import LogUniform, Normal

# Optuna's default of 10 random trials would leave a small budget no trial to model.
MOST_RANDOM_TRIALS = 10
# Optuna's defaults since its version 5, said here for older ones: one model of all hyperparameters together
# (Falkner et al. 2018), and trials still running taken for bad ones, so that the next to start is not the same.
tpe_sampler = partial(TPESampler, multivariate=True, constant_liar=True)


def optuna_plan(context: Context, method: str, make_sampler: Callable[..., optuna.samplers.BaseSampler]) -> Plan:
    """A plan of full trials, the start values first, then what a seeded sampler proposes; log domains in log space.

    Args:
        context: Context of the run.
        method: Name of the method, for errors.
        make_sampler: Factory called with `seed` and `n_startup_trials`, the number of random trials before the first
            modelled.

    Raises:
        ValueError: the space has a domain that Optuna does not know.
    """
    space = context.task.space
    for name, domain in space.items():
        if isinstance(domain, Normal) or (isinstance(domain, LogUniform) and domain.step is not None):
            raise ValueError(
                f"{method} cannot search {name!r} over {domain.describe()}: accepted are uniform, integer and "
                "unstepped log domains"
            )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = make_sampler(
            seed=context.seed, n_startup_trials=min(MOST_RANDOM_TRIALS, max(2, context.full_trials // 3))
        )
    start = {f"hp/{name}": value for name, value in start_point(context.task).items()}
    search = OptunaSearch(metric=METRIC, mode=MODE, sampler=sampler, points_to_evaluate=[start])
    return Plan(
        search_alg=ConcurrencyLimiter(search, max_concurrent=context.slots),
        samples=context.samples(1),
        hp=space.to_tune(),
    )


__all__ = ["GPSampler", "optuna_plan", "tpe_sampler"]
