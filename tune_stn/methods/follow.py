"""What of a self-tuning run is tuning: its schedule, and its last values, on the plain network of the same seed.

Both are made from the best trial of the finished run of `auto` at the same seed, and are full trials: where the budget
cut that one off, its last values hold to the end. They are charged with what that run has spent, without which there
would be neither schedule nor values.
"""

from __future__ import annotations

from ray.tune.search import BasicVariantGenerator

from tune_stn.methods.method import Context, Plan, start_point, tune_values
from tune_stn.training.schedule import Schedule


def replayed(context: Context) -> Plan:
    schedule = _followed(context)
    return Plan(
        search_alg=BasicVariantGenerator(), samples=1, hp=start_point(context.task), config={"schedule": schedule}
    )


def last_values(context: Context) -> Plan:
    schedule, space = _followed(context), context.task.space
    last = {**context.task.start, **schedule.at(float(schedule.times[-1]))}
    return Plan(search_alg=BasicVariantGenerator(), samples=1, hp=tune_values(space, space.check_values(last)))


def _followed(context: Context) -> Schedule:
    if context.followed is None:
        raise ValueError(
            "a replay and last values are made from a run of auto, and the context holds the schedule of none: "
            "give Context(followed=...)"
        )
    context.followed.check(context.task.space)
    return context.followed
