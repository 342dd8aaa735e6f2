"""Population-based bandits (Parker-Holder et al. 2020, arXiv 2002.02518), Ray Tune's scheduler."""

from __future__ import annotations

from tune_stn.methods.method import Context, Plan
from tune_stn.methods.pb2_over_space import PB2OverSpace
from tune_stn.methods.pbt import population_plan, population_settings


def plan(context: Context) -> Plan:
    return population_plan(context, PB2OverSpace(context.task.space, **population_settings(context)))
