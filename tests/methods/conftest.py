"""Contexts to plan from, and the configurations that a plan proposes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Experiment

from tune_stn.methods import Context, Plan
from tune_stn.tasks import get_task
from tune_stn.tuning.trainable import STNTrainable

MakeContext = Callable[..., Context]


@pytest.fixture
def make_context() -> MakeContext:
    """A factory: digits-mlp with 10 epochs, budget 35, two slots; keywords are fields of `Context`."""

    def make(**more: Any) -> Context:
        given = {"task": get_task("digits-mlp", epochs=10), "budget": 35.0, "seed": 0, "slots": 2}
        return Context(**(given | more))

    return make


@pytest.fixture
def draw(tmp_path: Path) -> Callable[[Plan, int], list[dict[str, float]]]:
    """The first hyperparameters that a plan proposes, each trial ending before the next is asked for."""

    def draw(plan: Plan, count: int) -> list[dict[str, float]]:
        experiment = Experiment(
            "x", STNTrainable, config={"hp": plan.hp}, num_samples=plan.samples, storage_path=str(tmp_path)
        )
        search: Any = plan.search_alg
        search.add_configurations([experiment])
        drawn = []
        for _ in range(count):
            trial = search.next_trial()
            if trial is None:
                break
            search.on_trial_complete(trial.trial_id)
            drawn.append(trial.config["hp"])
        return drawn

    return draw
