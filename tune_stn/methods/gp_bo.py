"""Bayesian optimisation with a Gaussian process, Optuna's sampler."""

from __future__ import annotations

from tune_stn.methods.method import Context, Method, Plan


def _plan(context: Context) -> Plan:
    from tune_stn.methods.optuna import GPSampler, optuna_plan  # here, so that only who uses Optuna imports it

    return optuna_plan(context, "gp-bo", GPSampler)


GP_BO = Method("gp-bo", "Bayesian optimisation with a Gaussian process over full trials", "fixed", _plan)
