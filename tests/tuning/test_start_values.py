"""Where a trial may start: members of the domains, and the Gaussian mixture around good trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune

from tune_stn.space import Domain, Integer, LogInteger, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.tuning.start_values import LEAST_SPREAD, Report, StartDomains

DOMAINS: list[Domain] = [
    Uniform(0, 0.9),
    Uniform(0, 0.9, 0.1),
    LogUniform(1e-6, 1e-1),
    LogUniform(1, 1000, 1),
    Integer(0, 1),
    Integer(2, 24),
    Integer(0, 12, 3),
    LogInteger(1, 1000),
    LogInteger(8, 1024, step=8),
    Normal(3, 2),
    Normal(0, 1, 0.25),
]
SPACE = SearchSpace({f"hp{number}": domain for number, domain in enumerate(DOMAINS)})
shares = st.lists(st.floats(-2.0, 3.0), min_size=len(DOMAINS), max_size=len(DOMAINS))  # in and beyond the domains
scales = st.lists(st.floats(0.0, 50.0), min_size=len(DOMAINS), max_size=len(DOMAINS))


def beyond(domain: Domain, share: float) -> float:
    """A value at a share of the way through a domain, outside of it where the share is below 0 or above 1."""
    low, high = (domain.mean, domain.mean + domain.sd) if isinstance(domain, Normal) else (domain.low, domain.high)
    return low + share * (high - low)


@settings(max_examples=60, deadline=None)
@given(reports=st.lists(st.tuples(st.floats(0, 9), shares, scales), min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_every_draw_is_inside_the_domains(reports: list[tuple[float, list[float], list[float]]], seed: int) -> None:
    domains = StartDomains(SPACE.to_tune())
    best = [
        Report(
            loss,
            {name: beyond(domain, share) for (name, domain), share in zip(SPACE.items(), at, strict=True)},
            dict(zip(SPACE, scale, strict=True)),
        )
        for loss, at, scale in reports
    ]
    rng = np.random.default_rng(seed)
    for point in (domains.draw(rng), domains.draw_near(best, rng), domains.nearest(best[0].values)):
        SPACE.check_values(point)
        for name, domain in SPACE.items():
            assert isinstance(point[name], int if isinstance(domain, Integer) else float)


def drawn_near(*reports: Report, count: int = 4000) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Draws of one hyperparameter whose raw coordinate is its value."""
    domains = StartDomains({"a": tune.randn()})
    return np.array([domains.draw_near(reports, np.random.default_rng(seed))["a"] for seed in range(count)])


def test_the_mixture_has_the_moments_of_its_formula() -> None:
    draws = drawn_near(Report(0.2, {"a": 3.0}, {"a": 2.0}), Report(0.1, {"a": 0.0}, {"a": 1.0}))
    # Weights 2/3 (of the lower loss) and 1/3; the ends vary by 2 around their mean, 1; so do the centres.
    assert draws.mean() == pytest.approx(1.0, abs=0.12)
    assert draws.var() == pytest.approx((2 / 3 * 1 + 1 / 3 * 4 + 2) + 2, rel=0.08)


@pytest.mark.slow
def test_trials_that_agree_leave_their_own_scale_and_a_single_one_too() -> None:
    same = [Report(loss, {"a": 5.0}, {"a": 0.5}) for loss in (0.1, 0.2, 0.3)]
    for draws in (drawn_near(*same), drawn_near(same[0])):
        assert draws.mean() == pytest.approx(5.0, abs=0.03)
        assert draws.std() == pytest.approx(0.5, rel=0.05)


def test_no_draw_repeats_a_trial_that_has_no_scale() -> None:
    assert drawn_near(Report(0.1, {"a": 5.0}, {"a": 0.0})).std() == pytest.approx(LEAST_SPREAD, rel=0.05)


def test_only_the_order_of_losses_matters() -> None:
    def at(*losses: float) -> list[float]:
        reports = [Report(loss, {"a": 10.0 * n}, {"a": 1.0}) for n, loss in enumerate(losses)]
        return drawn_near(*reports, count=20).tolist()

    assert at(0.1, 0.2, 0.3) == at(-5.0, 1e-9, 1e9)
    assert at(0.1, 0.2, 0.3) != at(0.3, 0.2, 0.1)


def test_random_draws_follow_the_domains() -> None:
    domains = StartDomains({"a": tune.loguniform(1e-4, 1.0)})
    draws = np.log10([domains.draw(np.random.default_rng(seed))["a"] for seed in range(2000)])
    assert draws.mean() == pytest.approx(-2.0, abs=0.1)
    assert draws.std() == pytest.approx(4 / 12**0.5, rel=0.05)


def test_nearest_members_and_a_missing_value() -> None:
    domains = StartDomains({"a": tune.uniform(0.5, 0.9), "n": tune.randint(2, 10)})
    assert domains.nearest({"a": 0.1, "n": 40.0, "more": 1.0}) == {"a": 0.5, "n": 9}
    with pytest.raises(ValueError, match=r"no start value for n of param_space\['hp'\]; given: a"):
        domains.nearest({"a": 0.1})


@pytest.mark.parametrize("domain", [tune.choice([1, 2]), tune.sample_from(lambda: 1)])
def test_a_domain_without_a_raw_coordinate_is_named(domain: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="hyperparameter 'a' has the domain"):
        StartDomains({"a": domain})
