"""What a self-tuning network gains without tuning: its response and its noise, but no hyper-step."""

from __future__ import annotations

from ray.tune.search import BasicVariantGenerator

from tune_stn.methods.method import Context, Method, Plan, start_point
from tune_stn.methods.stn import AUTO


def _plan(context: Context) -> Plan:
    return Plan(
        search_alg=BasicVariantGenerator(),
        samples=1,  # a second trial at the same values and seed would be the same trial
        hp=start_point(context.task),
        # Hyper-steps begin after the warm-up, so a warm-up of the whole trial leaves none.
        config={"warmup_epochs": context.epochs},
    )


FROZEN = Method(
    "frozen", "control of auto: its response and noise without a hyper-step, one trial", AUTO.algorithm, _plan
)
