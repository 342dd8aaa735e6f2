"""Self-tuning networks: one trial after the other, each tuning itself."""

from __future__ import annotations

from ray.tune.search import ConcurrencyLimiter

from tune_stn.methods.method import METRIC, MODE, Context, Method, Plan, start_point
from tune_stn.tuning.search import STNSearch


def _plan(context: Context) -> Plan:
    search = STNSearch(metric=METRIC, mode=MODE, seed=context.seed, start=start_point(context.task))
    # One at a time: what is left of the budget after the first trial goes into a restart that knows how it ended,
    # instead of halving the first trial's share.
    return Plan(
        search_alg=ConcurrencyLimiter(search, max_concurrent=1),
        samples=context.samples(context.epochs),
        hp=context.task.space.to_tune(),
    )


AUTO = Method("auto", "the project's best self-tuning rule, by committed evidence; restarts like stn", "auto", _plan)
PROGRESS_RATIO = Method(
    "progress-ratio",
    "one number for all: more regularisation where validation gains too little of what training does",
    "progress-ratio",
    _plan,
)
STN = Method("stn", "Self-Tuning Network; restarts around where it ended while budget is left", "stn", _plan)
DELTA_STN = Method("delta-stn", "Delta-STN: linearised response around the mean; restarts like stn", "delta-stn", _plan)
