"""Random search (Bergstra and Bengio 2012), and the draws that other methods begin with."""

from __future__ import annotations

from ray.tune.search import BasicVariantGenerator

from tune_stn.methods.method import Context, Plan, start_point


def random_draws(context: Context, *, concurrent: int = 0) -> BasicVariantGenerator:
    """Random draws from the space after the task's start values, which every method tries first.

    Args:
        context: of the run.
        concurrent: trials alive at a time, paused ones included; 0 for no limit but the cluster's.
    """
    return BasicVariantGenerator(
        points_to_evaluate=[{"hp": start_point(context.task)}], max_concurrent=concurrent, random_state=context.seed
    )


def plan(context: Context) -> Plan:
    # Diverged trials end early and leave budget for more than the full trials.
    return Plan(
        search_alg=random_draws(context, concurrent=context.slots),
        samples=context.samples(1),
        hp=context.task.space.to_tune(),
    )
