"""Bayesian optimisation with a Gaussian process, Optuna's sampler."""

from __future__ import annotations

import optuna

from tune_stn.methods.method import Context, Method, Plan
from tune_stn.methods.optuna import optuna_plan


def _plan(context: Context) -> Plan:
    return optuna_plan(context, "gp-bo", optuna.samplers.GPSampler)


GP_BO = Method("gp-bo", "Bayesian optimisation with a Gaussian process over full trials", "fixed", _plan)
