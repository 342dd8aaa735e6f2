"""Self-tuning networks: one trial after the other, each tuning itself."""

from __future__ import annotations

from ray.tune.search import ConcurrencyLimiter

from tune_stn.methods.method import METRIC, MODE, Context, Plan, start_point
from tune_stn.tuning.search import STNSearch


def plan(context: Context) -> Plan:
    search = STNSearch(metric=METRIC, mode=MODE, seed=context.seed, start=start_point(context.task))
    # One at a time: what is left of the budget after the first trial goes into a restart that knows how it ended,
    # instead of halving the first trial's share.
    return Plan(
        search_alg=ConcurrencyLimiter(search, max_concurrent=1),
        samples=context.samples(context.epochs),
        hp=context.task.space.to_tune(),
    )
