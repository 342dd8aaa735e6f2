"""Random search (Bergstra and Bengio 2012)."""

from __future__ import annotations

from tune_stn.methods.method import Context, Method, Plan, random_draws


def _plan(context: Context) -> Plan:
    # Diverged trials end early and leave budget for more than the full trials.
    return Plan(
        search_alg=random_draws(context, concurrent=context.slots),
        samples=context.samples(1),
        hp=context.task.space.to_tune(),
    )


RANDOM = Method("random", "random search over full trials", "fixed", _plan)
