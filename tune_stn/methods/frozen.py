"""What the rule `auto` gains without tuning: all that it does but for the hyper-steps."""

from __future__ import annotations

from ray.tune.search import BasicVariantGenerator

from tune_stn.methods.method import Context, Plan, start_point


def plan(context: Context) -> Plan:
    return Plan(
        search_alg=BasicVariantGenerator(),
        samples=1,  # a second trial at the same values and seed would be the same trial
        hp=start_point(context.task),
        # Hyper-steps begin after the warm-up, so a warm-up of the whole trial leaves none.
        config={"warmup_epochs": context.epochs},
    )
