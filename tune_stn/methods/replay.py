"""A schedule, replayed on a plain network."""

from __future__ import annotations

import hashlib

from tune_stn.methods.method import Context, Method, Plan, start_point
from tune_stn.training.schedule import Schedule


def replay(schedule: Schedule) -> Method:
    """One plain trial that follows the schedule; what that does not name keeps the task's start value.

    The trial gets the schedule itself, not the path of its file: on a cluster, that is another machine's. The plan
    raises ValueError where a name or a value is not of the task's space.
    """

    def plan(context: Context) -> Plan:
        from ray.tune.search import BasicVariantGenerator  # here: the schedule is checked before Ray is loaded

        schedule.check(context.task.space)
        return Plan(
            search_alg=BasicVariantGenerator(),
            samples=1,
            hp=start_point(context.task),
            config={"schedule": schedule},
        )

    settings = {"schedule": repr(schedule), "sha256": hashlib.sha256(schedule.to_frame().to_csv().encode()).hexdigest()}
    return Method(
        "replay",
        "one plain trial that follows a schedule",
        "fixed",
        plan,
        settings=settings,
        schedule=schedule,
    )
