"""Population-based bandits (Parker-Holder et al. 2020, arXiv 2002.02518), Ray Tune's scheduler."""

from __future__ import annotations

from tune_stn.methods.method import Context, Method, Plan
from tune_stn.methods.pbt import population_plan, population_settings


def _plan(context: Context) -> Plan:
    from tune_stn.methods.pb2_over_space import PB2OverSpace  # here, so that only PB2 imports scikit-learn

    return population_plan(context, PB2OverSpace(context.task.space, **population_settings(context)))


PB2 = Method(
    "pb2", "population-based training whose changes a Gaussian process chooses", "fixed", _plan, restores=False
)
