"""Ray Tune's domains and ours: the same members and distribution, there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune

from tune_stn.space import Domain, Integer, LogInteger, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.space.ray_domains import domain_from_ray, domain_to_ray

PAIRS: list[tuple[Any, Domain]] = [
    (tune.uniform(0, 0.9), Uniform(0, 0.9)),
    (tune.quniform(0, 1, 0.25), Uniform(0, 1, 0.25)),
    (tune.quniform(0, 10, 1), Uniform(0, 10, 1)),
    (tune.loguniform(1e-6, 1e-1), LogUniform(1e-6, 1e-1)),
    (tune.qloguniform(0.5, 16, 0.5), LogUniform(0.5, 16, 0.5)),
    (tune.qloguniform(1, 16, 1), LogUniform(1, 16, 1)),
    (tune.randint(2, 25), Integer(2, 24)),
    (tune.lograndint(1, 101), LogInteger(1, 100)),
    (tune.qrandint(0, 12, 3), Integer(0, 12, 3)),
    (tune.qlograndint(2, 12, 2), LogInteger(2, 12, 2)),
    (tune.randn(1, 2), Normal(1, 2)),
    (tune.qrandn(1, 2, 0.5), Normal(1, 2, 0.5)),
    (tune.qrandn(0, 2, 1), Normal(0, 2, 1)),
]
each_pair = pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[str(ours) for _, ours in PAIRS])


def described(domain: Any) -> tuple[Any, ...]:
    """All that a Ray domain knows, for comparing two of them."""
    sampler = domain.get_sampler()
    quantum = getattr(sampler, "q", None)
    inner = sampler.sampler if quantum is not None else sampler
    bounds = (domain.lower, domain.upper)
    return type(domain), bounds, quantum, type(inner), getattr(inner, "mean", None), getattr(inner, "sd", None)


@each_pair
def test_from_ray(theirs: Any, ours: Domain) -> None:
    assert domain_from_ray("x", theirs) == ours


@each_pair
def test_to_ray_loses_nothing(theirs: Any, ours: Domain) -> None:
    there = domain_to_ray(ours)
    assert described(there) == described(theirs)
    assert domain_from_ray("x", there) == ours


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_there_and_back_for_drawn_domains(data: st.DataObject) -> None:
    step = data.draw(st.sampled_from([None, 0.1, 0.25, 1.0, 3]))
    unit = step or 0.1
    low = data.draw(st.integers(1, 20))
    high = low + data.draw(st.integers(1, 50))
    whole = data.draw(st.integers(1, 4))
    domains: list[Domain] = [
        Uniform(low * unit, high * unit, step),
        LogUniform(low * unit, high * unit, step),
        Integer(low * whole, high * whole, whole),
        LogInteger(low * whole, high * whole, whole),
        Normal(low, high, step),
    ]
    for domain in domains:
        assert domain_from_ray("x", domain_to_ray(domain)) == domain


def test_what_ray_draws_from_our_integers_is_all_of_them() -> None:
    """Ray's ends are exclusive here and inclusive there: the draws are what counts."""
    for domain in (Integer(0, 3), LogInteger(1, 4), Integer(0, 6, 2)):
        theirs = domain_to_ray(domain)
        np.random.seed(0)  # noqa: NPY002 (Ray draws from the global state)
        drawn = {int(value) for value in theirs.sample(size=2000)}
        assert drawn == set(range(domain.low, domain.high + 1, domain.step))


def test_randint_quantized_by_one_ends_where_ray_ends() -> None:
    """Its upper end is exclusive, unlike that of other quantums (Ray's docstring)."""
    theirs = tune.qrandint(0, 4, 1)
    np.random.seed(0)  # noqa: NPY002
    assert max(theirs.sample(size=2000)) == 3
    assert domain_from_ray("x", theirs) == Integer(0, 3)


def test_our_own_domains_pass_through() -> None:
    space = SearchSpace.from_tune({"a": Uniform(0, 1), "b": tune.randint(0, 2)}, per_batch=["a"])
    assert dict(space) == {"a": Uniform(0, 1), "b": Integer(0, 1)}
    assert space.per_batch == {"a"}


def test_space_there_and_back() -> None:
    space = SearchSpace({str(i): ours for i, (_, ours) in enumerate(PAIRS)})
    there = space.to_tune()
    assert list(there) == list(space)
    assert SearchSpace.from_tune(there) == space


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (tune.choice(["relu", "tanh"]), "Categorical"),
        (tune.grid_search([0.1, 0.2]), "grid_search"),
        (tune.sample_from(lambda config: 1), "Function"),
        (0.3, "0.3"),
        ("uniform", "'uniform'"),
    ],
)
def test_what_has_no_raw_coordinate_is_refused_with_what_has(domain: Any, words: str) -> None:
    with pytest.raises(ValueError, match="no raw coordinate") as caught:
        SearchSpace.from_tune({"rate": tune.uniform(0, 1), "kind": domain})
    message = str(caught.value)
    for part in ("'kind'", words, "uniform, loguniform, randint", "param_space beside 'hp'"):
        assert part in message
    assert "object at 0x" not in message


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (tune.randint(0, 1), "empty domain"),
        (tune.uniform(1, 0), "empty domain"),
        (tune.qrandint(1, 10, 3), "multiples of the step"),
    ],
)
def test_domain_that_is_none_is_refused_by_name(domain: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"'rate'.*{words}"):
        SearchSpace.from_tune({"rate": domain})


def test_learning_rate_is_refused_before_its_domain_is_looked_at() -> None:
    with pytest.raises(ValueError, match=r"'lr' cannot be tuned inside a run.*param_space"):
        SearchSpace.from_tune({"lr": tune.choice([0.1, 0.01])})


def test_a_domain_of_somebody_else_has_no_ray_form() -> None:
    with pytest.raises(ValueError, match="no Ray Tune domain is known"):
        domain_to_ray(object())  # type: ignore[arg-type]
