"""Bayesian optimisation with a Gaussian process, Optuna's sampler."""

from __future__ import annotations

from tune_stn.methods.method import Context, Plan
from tune_stn.methods.optuna import GPSampler, optuna_plan


def plan(context: Context) -> Plan:
    return optuna_plan(context, "gp-bo", GPSampler)
