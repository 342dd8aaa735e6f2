"""TPE: Optuna's sampler with Parzen estimators. What it shares with Gaussian processes is in test_optuna.py."""

from __future__ import annotations

from typing import Any

import optuna

from tune_stn.methods import get_method


def searched(context: Any) -> Any:
    plan: Any = get_method("tpe").plan(context)
    plan.search_alg.set_search_properties("best_val_loss", "min", {"hp": plan.hp})
    return plan.search_alg


def test_parzen_estimators_over_full_trials(make_context: Any) -> None:
    plan: Any = get_method("tpe").plan(make_context())
    assert isinstance(plan.search_alg.searcher._sampler, optuna.samplers.TPESampler)
    assert plan.samples == 36
    assert get_method("tpe").restores


def test_trials_that_run_side_by_side_are_kept_apart(make_context: Any) -> None:
    """After ten trials that all say the same place is best, those asked for at once do not all go there."""
    search = searched(make_context(budget=90.0, slots=8))
    for number in range(10):
        point = search.suggest(str(number))["hp"]
        search.on_trial_complete(str(number), {"best_val_loss": abs(point["dropout_1"] - 0.4)})
    asked = [search.suggest(str(10 + number))["hp"]["dropout_1"] for number in range(8)]
    assert max(asked) - min(asked) > 0.1
