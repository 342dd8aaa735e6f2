"""Early and late dropout: dropout in one half of the epochs only (Liu et al. 2023, "Dropout Reduces Underfitting").

A random search over full trials. A drawn rate is in force in one half of the epochs, no dropout in the other; all other
hyperparameters are in force throughout. It shows what a schedule of a form that is known beforehand gains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ray import tune

from tune_stn.methods import random
from tune_stn.methods.method import Context, Plan
from tune_stn.space.quantile import quantile
from tune_stn.tasks.task import Task
from tune_stn.training.schedule import Schedule


def early(context: Context) -> Plan:
    """Dropout in the first half of the epochs. Raises ValueError where the task tunes no dropout."""
    off = no_dropout(context.task)
    return _plan(context, lambda values: (values, values | off))


def late(context: Context) -> Plan:
    """Dropout in the second half of the epochs. Raises ValueError where the task tunes no dropout."""
    off = no_dropout(context.task)
    return _plan(context, lambda values: (values | off, values))


def no_dropout(task: Task) -> dict[str, float]:
    """Each tuned dropout rate at 0, or at the low end of a domain without 0."""
    rates = {*task.dropout.values(), *task.weight_dropout.values()}
    off = {name: 0.0 if domain.contains(0.0) else quantile(domain, 1e-9) for name, domain in task.space.items()}
    if not rates & off.keys():
        raise ValueError(
            f"task {task.name!r} tunes no dropout that could be early or late: none of its hyperparameters "
            f"{', '.join(task.space)} is named in the task's `dropout` or `weight_dropout`"
        )
    return {name: value for name, value in off.items() if name in rates}


def _plan(context: Context, halves: Callable[[dict[str, float]], tuple[dict[str, float], dict[str, float]]]) -> Plan:
    names, times = tuple(context.task.space), np.array([0, context.epochs // 2])

    def schedule(spec: Any) -> Schedule:
        drawn = spec["config"]["hp"]  # one by one: Tune asks again later where one of them is not drawn yet
        rows = [list(half.values()) for half in halves({name: drawn[name] for name in names})]
        return Schedule(names, times, np.array(rows, dtype=float), unit="epoch")

    return replace(random.plan(context), config={"schedule": tune.sample_from(schedule)})
