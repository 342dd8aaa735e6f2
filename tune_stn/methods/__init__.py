"""Methods of a comparison: a table of what each is. How it plans a run is in a file of its own, loaded only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from tune_stn.methods.method import Context, Method, Plan, in_order


def _planned_in(file: str, function: str = "plan") -> Callable[[Context], Plan]:
    """The function of a file of this folder, which is loaded when a run is planned: it needs Ray, and seconds."""

    def plan(context: Context) -> Plan:
        found: Callable[[Context], Plan] = getattr(importlib.import_module(f"{__name__}.{file}"), function)
        return found(context)

    return plan


_ALL = (  # in the order of lists and legends
    Method(
        "stn",
        "Self-Tuning Network; restarts around where it ended while budget is left",
        "stn",
        _planned_in("stn"),
    ),
    Method(
        "delta-stn",
        "Delta-STN: linearised response around the mean; restarts like stn",
        "delta-stn",
        _planned_in("stn"),
    ),
    Method(
        "auto",
        "the project's best self-tuning rule, by committed evidence; restarts like stn",
        "auto",
        _planned_in("stn"),
    ),
    Method(
        "stn-population",
        "population of self-tuning trials: losers take over from winners, with wider scales",
        "stn",
        _planned_in("stn_population"),
    ),
    Method("fixed", "one plain trial at the task's start values", "fixed", _planned_in("fixed")),
    Method("random", "random search over full trials", "fixed", _planned_in("random")),
    Method(
        "early-dropout",
        "random search over full trials with dropout in the first half of the epochs only",
        "fixed",
        _planned_in("dropout_schedule", "early"),
    ),
    Method(
        "late-dropout",
        "random search over full trials with dropout in the second half of the epochs only",
        "fixed",
        _planned_in("dropout_schedule", "late"),
    ),
    Method("grid", "grid search over full trials, in an order drawn from the seed", "fixed", _planned_in("grid")),
    Method("tpe", "tree-structured Parzen estimator over full trials", "fixed", _planned_in("tpe")),
    Method(
        "gp-bo",
        "Bayesian optimisation with a Gaussian process over full trials",
        "fixed",
        _planned_in("gp_bo"),
    ),
    Method(
        "hyperband",
        "HyperBand over random draws, halving by epochs",
        "fixed",
        _planned_in("hyperband"),
        restores=False,
    ),
    Method(
        "asha",
        "asynchronous successive halving of random draws by epochs",
        "fixed",
        _planned_in("asha"),
        restores=False,
    ),
    Method("median", "random search with the median stopping rule", "fixed", _planned_in("median"), restores=False),
    Method(
        "pbt",
        "population-based training over as many members as the budget pays",
        "fixed",
        _planned_in("pbt"),
        restores=False,
    ),
    Method(
        "pb2",
        "population-based training whose changes a Gaussian process chooses",
        "fixed",
        _planned_in("pb2"),
        restores=False,
    ),
    Method(
        "frozen",
        "control of auto: all that it does, but no hyper-step; one trial",
        "auto",
        _planned_in("frozen"),
        hyper_steps=False,
    ),
    Method(
        "progress-ratio",
        "one number for all: more regularisation where validation gains too little of what training does",
        "progress-ratio",
        _planned_in("stn"),
    ),
    Method(
        "replayed",
        "control of auto: the schedule of its best trial on the plain network; costs both",
        "fixed",
        _planned_in("follow", "replayed"),
        follows="auto",
    ),
    Method(
        "last-values",
        "control of auto: the last values of its best trial held on the plain network; costs both",
        "fixed",
        _planned_in("follow", "last_values"),
        follows="auto",
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
# Those that are one algorithm and nothing around it, as `tune-stn run` takes them.
ALGORITHMS: Mapping[str, Method] = {name: method for name, method in METHODS.items() if name == method.algorithm}


def get_method(name: str) -> Method:
    """The method of that name. Raises ValueError naming the accepted ones."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; accepted are {', '.join(METHODS)}")
    return METHODS[name]


def get_algorithm(name: str) -> Method:
    """The method that is the algorithm of that name and nothing else. Raises ValueError naming the accepted ones."""
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; accepted are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


__all__ = ["ALGORITHMS", "METHODS", "Context", "Method", "Plan", "get_algorithm", "get_method", "in_order"]
