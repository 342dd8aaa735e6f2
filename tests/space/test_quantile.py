"""Quantiles of domains: exact values, round trips, agreement with what random search draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_stn.space import Integer, LogInteger, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.space.quantile import quantile, share_below

DOMAINS = [
    Uniform(-1.0, 3.0),
    Uniform(0.0, 1.0, 0.25),
    LogUniform(1e-6, 1e-1),
    LogUniform(0.25, 4.0, 0.25),
    Integer(0, 5),
    Integer(0, 9, 3),
    LogInteger(1, 64),
    Normal(1.0, 2.0),
    Normal(0.0, 1.0, 0.5),
]


@pytest.mark.parametrize(
    ("domain", "share", "value"),
    [
        (Uniform(-1.0, 3.0), 0.25, 0.0),
        (LogUniform(1e-6, 1e-2), 0.25, 1e-5),
        (LogUniform(1.0, 100.0), 0.5, 10.0),
        (Integer(0, 5), 0.25, 1),
        (Integer(0, 5), 0.99, 5),
        (LogInteger(1, 7), 0.5, 2),  # 1, 2 and 3 own half of the logarithm of 1 to 8, 2 a third of that
        (Normal(1.0, 2.0), 0.5, 1.0),
        (Normal(1.0, 2.0), 0.841344746, 3.0),
    ],
)
def test_known_quantiles(domain: Any, share: float, value: float) -> None:
    assert math.isclose(quantile(domain, share), value, rel_tol=1e-7, abs_tol=1e-9)


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
@given(share=st.floats(1e-3, 1 - 1e-3), further=st.floats(1e-3, 1 - 1e-3))
def test_members_in_order_that_come_back_from_their_share(domain: Any, share: float, further: float) -> None:
    value = quantile(domain, share)
    assert domain.contains(value)
    again = share_below(domain, value)
    assert 0 < again < 1
    assert math.isclose(quantile(domain, again), value, rel_tol=1e-9, abs_tol=1e-9)
    low, high = sorted((share, further))
    assert quantile(domain, low) <= quantile(domain, high)
    if getattr(domain, "step", None) is None:
        assert math.isclose(again, share, rel_tol=1e-6)


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_as_many_random_draws_lie_below_as_it_says(domain: Any) -> None:
    drawn = np.asarray(SearchSpace({"x": domain}).to_tune()["x"].sample(size=4000, random_state=0))
    # Tune rounds the draws of a stepped uniform domain to the nearest member, so that an end gets half a share.
    slack = 0.12 if isinstance(domain, (Uniform, Integer)) and domain.step not in (None, 1) else 0.03
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        value = quantile(domain, share)
        close = np.isclose(drawn, value)
        assert ((drawn < value) & ~close).mean() - slack < share < ((drawn < value) | close).mean() + slack


@pytest.mark.parametrize("domain", [Uniform(0.0, 0.9), LogUniform(1e-6, 1e-1)])
def test_an_end_is_moved_inside_a_little(domain: Any) -> None:
    assert 0 < share_below(domain, domain.low) < 0.002
    assert 0.998 < share_below(domain, domain.high) < 1
    with pytest.raises(ValueError, match="is outside"):
        share_below(domain, 2.0)
