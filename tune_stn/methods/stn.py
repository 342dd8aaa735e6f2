"""Self-tuning networks: one trial after the other, each tuning itself."""

from __future__ import annotations

from tune_stn.methods.method import Context, Method, Plan, random_draws


def _plan(context: Context) -> Plan:
    # One at a time: what is left of the budget after the first trial goes into a restart from random start values,
    # instead of halving the first trial's share.
    return Plan(
        search_alg=random_draws(context, concurrent=1),
        samples=context.samples(context.epochs),
        hp=context.task.space.to_tune(),
    )


STN = Method("stn", "Self-Tuning Network; restarts from random start values while budget is left", "stn", _plan)
DELTA_STN = Method("delta-stn", "Delta-STN: linearised response around the mean; restarts like stn", "delta-stn", _plan)
