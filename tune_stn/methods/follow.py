"""What of a self-tuning run is tuning: its schedule, and its last values, on the plain network of the same seed.

Both are made from the best trial of the finished run of `auto` at the same seed, and are full trials: where the budget
cut that one off, its last values hold to the end. They are charged with what that run has spent, without which there
would be neither schedule nor values.
"""

from __future__ import annotations

from ray.tune.search import BasicVariantGenerator

from tune_stn.methods.method import Context, Method, Plan, start_point, tune_values
from tune_stn.methods.stn import AUTO
from tune_stn.training.schedule import Schedule


def _replayed(context: Context) -> Plan:
    schedule = _followed(context)
    return Plan(
        search_alg=BasicVariantGenerator(), samples=1, hp=start_point(context.task), config={"schedule": schedule}
    )


def _last_values(context: Context) -> Plan:
    schedule, space = _followed(context), context.task.space
    last = {**context.task.start, **schedule.at(float(schedule.times[-1]))}
    return Plan(search_alg=BasicVariantGenerator(), samples=1, hp=tune_values(space, space.check_values(last)))


def _followed(context: Context) -> Schedule:
    if context.followed is None:
        raise ValueError(
            f"a replay and last values are made from a run of {AUTO.name}, and the context holds the schedule of none: "
            "give Context(followed=...)"
        )
    context.followed.check(context.task.space)
    return context.followed


REPLAYED = Method(
    "replayed",
    "control of auto: the schedule of its best trial on the plain network; costs both",
    "fixed",
    _replayed,
    follows=AUTO.name,
)
LAST_VALUES = Method(
    "last-values",
    "control of auto: the last values of its best trial held on the plain network; costs both",
    "fixed",
    _last_values,
    follows=AUTO.name,
)
