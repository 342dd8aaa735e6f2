"""TPE: Optuna's sampler with Parzen estimators. What it shares with Gaussian processes is in test_optuna.py."""

from __future__ import annotations

from typing import Any

import optuna

from tune_stn.methods import get_method


def test_parzen_estimators_over_full_trials(make_context: Any) -> None:
    plan: Any = get_method("tpe").plan(make_context())
    assert plan.samples == 36
    assert get_method("tpe").restores
    sampler = plan.search_alg.searcher._sampler
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert sampler._multivariate
    assert sampler._constant_liar
