"""Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's sampler."""

from __future__ import annotations

from tune_stn.methods.method import Context, Method, Plan


def _plan(context: Context) -> Plan:
    from tune_stn.methods.optuna import optuna_plan, tpe_sampler  # here, so that only who uses Optuna imports it

    return optuna_plan(context, "tpe", tpe_sampler)


TPE = Method("tpe", "tree-structured Parzen estimator over full trials", "fixed", _plan)
