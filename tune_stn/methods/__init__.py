"""Methods of a comparison, one file each; a new one is one file and one line here."""

from collections.abc import Mapping

from tune_stn.methods.asha import ASHA
from tune_stn.methods.fixed import FIXED
from tune_stn.methods.follow import LAST_VALUES, REPLAYED
from tune_stn.methods.frozen import FROZEN
from tune_stn.methods.gp_bo import GP_BO
from tune_stn.methods.grid import GRID
from tune_stn.methods.hyperband import HYPERBAND
from tune_stn.methods.median import MEDIAN
from tune_stn.methods.method import Context, Method, Plan, in_order
from tune_stn.methods.pb2 import PB2
from tune_stn.methods.pbt import PBT
from tune_stn.methods.random import RANDOM
from tune_stn.methods.stn import AUTO, DELTA_STN, PROGRESS_RATIO, STN
from tune_stn.methods.stn_population import STN_POPULATION
from tune_stn.methods.tpe import TPE

# In the order of lists and legends.
_ALL = (
    *(STN, DELTA_STN, AUTO, STN_POPULATION),
    *(FIXED, RANDOM, GRID, TPE, GP_BO, HYPERBAND, ASHA, MEDIAN, PBT, PB2),
    *(FROZEN, PROGRESS_RATIO, REPLAYED, LAST_VALUES),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def get_method(name: str) -> Method:
    """The method of that name. Raises ValueError naming the accepted ones."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; accepted are {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Context", "Method", "Plan", "get_method", "in_order"]
