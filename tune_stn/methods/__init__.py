"""Methods of a comparison, one file each; a new one is one file and one line here."""

from collections.abc import Mapping

from tune_stn.methods.fixed import FIXED
from tune_stn.methods.gp_bo import GP_BO
from tune_stn.methods.hyperband import HYPERBAND
from tune_stn.methods.method import Context, Method, Plan
from tune_stn.methods.pbt import PBT
from tune_stn.methods.random import RANDOM
from tune_stn.methods.stn import DELTA_STN, STN

METHODS: Mapping[str, Method] = {
    method.name: method for method in (STN, DELTA_STN, FIXED, RANDOM, GP_BO, HYPERBAND, PBT)
}


def get_method(name: str) -> Method:
    """The method of that name. Raises ValueError naming the accepted ones."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; accepted are {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Context", "Method", "Plan", "get_method"]
