"""Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's sampler."""

from __future__ import annotations

from tune_stn.methods.method import Context, Plan
from tune_stn.methods.optuna import optuna_plan, tpe_sampler


def plan(context: Context) -> Plan:
    return optuna_plan(context, "tpe", tpe_sampler)
