"""Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's sampler."""

from __future__ import annotations

from functools import partial

import optuna

from tune_stn.methods.method import Context, Method, Plan
from tune_stn.methods.optuna import optuna_plan


def _plan(context: Context) -> Plan:
    # Optuna's defaults since its version 5, said here for older ones: one model of all hyperparameters together
    # (Falkner et al. 2018), and trials still running taken for bad ones, so that the next to start is not the same.
    sampler = partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True)
    return optuna_plan(context, "tpe", sampler)


TPE = Method("tpe", "tree-structured Parzen estimator over full trials", "fixed", _plan)
