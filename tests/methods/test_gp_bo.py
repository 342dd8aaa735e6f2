"""Bayesian optimisation: Optuna's sampler with a Gaussian process. What it shares with TPE is in test_optuna.py."""

from __future__ import annotations

from typing import Any

import optuna

from tune_stn.methods import get_method


def test_a_gaussian_process_over_full_trials(make_context: Any) -> None:
    plan: Any = get_method("gp-bo").plan(make_context())
    assert isinstance(plan.search_alg.searcher._sampler, optuna.samplers.GPSampler)
    assert plan.samples == 36
    assert get_method("gp-bo").restores
