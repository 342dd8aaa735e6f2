"""Domains: every map there and back, at the ends and beyond, in both precisions."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tune_stn.space.domains import (
    EDGE,
    Domain,
    Integer,
    LogInteger,
    LogUniform,
    Normal,
    Uniform,
    from_entry,
    to_entry,
)

DTYPES = [torch.float32, torch.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Ends that neither float32 nor float64 holds exactly, wide and narrow, around zero and off it.
CONTINUOUS: list[Domain] = [
    Uniform(0, 0.9),
    Uniform(-3, 0.3),
    Uniform(0.1, 0.3),
    Uniform(1e6, 1.5e6),
    LogUniform(1e-6, 1e-1),
    LogUniform(0.3, 0.7),
    LogUniform(1e-10, 1e10),
]
DISCRETE: list[Domain] = [
    Uniform(0, 0.9, 0.1),
    Uniform(-1, 1, 0.25),
    Uniform(0, 10, 2),
    LogUniform(1, 1000, 1),
    LogUniform(0.1, 0.9, 0.1),
    Integer(0, 1),
    Integer(2, 24),
    Integer(-5, 5),
    Integer(0, 12, 3),
    LogInteger(1, 1000),
    LogInteger(8, 1024, step=8),
]
BOUNDED = CONTINUOUS + DISCRETE
each_bounded = pytest.mark.parametrize("domain", BOUNDED, ids=str)
each_discrete = pytest.mark.parametrize("domain", DISCRETE, ids=str)


def ends(domain: Domain) -> tuple[float, float]:
    assert isinstance(domain, (Uniform, LogUniform, Integer))
    return domain.low, domain.high


def members(domain: Domain) -> list[float]:
    """All values of a discrete domain, from the definition."""
    assert isinstance(domain, (Uniform, LogUniform, Integer))
    assert domain.step is not None
    count = round((domain.high - domain.low) / domain.step) + 1
    return [domain.low + domain.step * k for k in range(count)]


def at(domain: Domain, raw: float, dtype: torch.dtype = torch.float64) -> float:
    return float(domain.transform(torch.tensor(raw, dtype=dtype)))


floats = st.floats(-1e4, 1e4)


@st.composite
def uniforms(draw: st.DrawFn) -> Uniform:
    low = draw(st.integers(-100_000, 100_000)) / 1000
    return Uniform(low, low + draw(st.floats(1e-2, 100)))


@st.composite
def log_uniforms(draw: st.DrawFn) -> LogUniform:
    low = 10 ** draw(st.floats(-8, 3))
    return LogUniform(low, low * 10 ** draw(st.floats(0.1, 8)))


@st.composite
def integers(draw: st.DrawFn) -> Integer:
    step, log = draw(st.integers(1, 7)), draw(st.booleans())
    low = draw(st.integers(1 if log else -50, 50))
    kind = LogInteger if log else Integer
    return kind(low * step, (low + draw(st.integers(1, 300))) * step, step)


@st.composite
def grids(draw: st.DrawFn) -> Uniform | LogUniform:
    """Continuous domains in steps, ends multiples of the step."""
    step, log = draw(st.sampled_from([0.05, 0.1, 0.25, 1.0, 3.0])), draw(st.booleans())
    low = draw(st.integers(1 if log else -20, 20))
    high = low + draw(st.integers(1, 100))
    return LogUniform(low * step, high * step, step) if log else Uniform(low * step, high * step, step)


# Inside -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(domain=uniforms() | log_uniforms() | integers() | grids(), raws=st.lists(floats, min_size=1, max_size=5))
def test_transform_stays_inside_and_is_accepted_back(domain: Domain, raws: list[float]) -> None:
    """Also in the sense of `contains`: a value written to a schedule can be a start value again."""
    low, high = ends(domain)
    for dtype in DTYPES:
        values = domain.transform(torch.tensor(raws, dtype=dtype))
        assert values.dtype == dtype
        bounds = torch.tensor([low, high], dtype=dtype)
        assert bool((values >= bounds[0]).all())
        assert bool((values <= bounds[1]).all())
        assert all(domain.contains(value) for value in values.tolist())


@each_bounded
@each_dtype
def test_far_away_is_the_end(domain: Domain, dtype: torch.dtype) -> None:
    low, high = ends(domain)
    for raw in (1e4, math.inf, 40.0):
        assert at(domain, raw, dtype) == pytest.approx(high, rel=1e-6)
        assert at(domain, -raw, dtype) == pytest.approx(low, rel=1e-6, abs=1e-12)
        assert domain.contains(at(domain, raw, dtype))
        assert domain.contains(at(domain, -raw, dtype))


@each_bounded
@each_dtype
def test_value_grows_with_raw(domain: Domain, dtype: torch.dtype) -> None:
    values = domain.transform(torch.linspace(-12, 12, 5001, dtype=dtype))
    assert bool((values.diff() >= 0).all())
    assert values.unique().numel() >= 2  # type: ignore[no-untyped-call]


@each_bounded
def test_shape_is_kept(domain: Domain) -> None:
    raw = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    values = domain.transform(raw)
    assert values.shape == raw.shape
    assert float(values[2, 1, 0]) == pytest.approx(at(domain, float(raw[2, 1, 0]), torch.float32), rel=1e-6)


# There and back ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(domain=uniforms() | log_uniforms(), share=st.floats(1e-5, 1 - 1e-5))
def test_continuous_value_comes_out_as_itself(domain: Uniform | LogUniform, share: float) -> None:
    """Nearly up to the ends: relative to the value on a log scale, to the larger end on a linear one."""
    low, high = ends(domain)
    if isinstance(domain, LogUniform):
        value = low * (high / low) ** share
        magnitude = value
    else:
        value = low + (high - low) * share
        magnitude = max(abs(low), abs(high))
    raw = domain.inverse(value)
    assert at(domain, raw) == pytest.approx(value, rel=0, abs=1e-11 * magnitude)
    assert at(domain, raw, torch.float32) == pytest.approx(value, rel=0, abs=1e-5 * magnitude)


@settings(max_examples=150, deadline=None)
@given(domain=integers() | grids(), data=st.data())
def test_discrete_value_comes_out_as_itself_in_both_precisions(domain: Domain, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(members(domain)))
    raw = domain.inverse(value)
    for dtype in DTYPES:
        back = at(domain, raw, dtype)
        if isinstance(domain, Integer):
            assert back == value
        else:  # the multiple itself is only as exact as its type
            assert back == pytest.approx(value, rel=2e-7, abs=1e-12)


@each_discrete
def test_every_member_comes_out_as_itself(domain: Domain) -> None:
    for value in members(domain):
        assert at(domain, domain.inverse(value), torch.float32) == pytest.approx(value, rel=2e-7, abs=1e-7)


@pytest.mark.parametrize(
    "domain", [LogInteger(1, 10**6), LogUniform(1, 1e6, step=1), Integer(1, 10**6), Uniform(0, 1e6, step=1)]
)
def test_of_a_million_members_each_comes_out_as_itself_in_float32(domain: Domain) -> None:
    members = [*range(1, 200), *range(200, 999_000, 997), *range(999_900, 1_000_001)]
    raws = torch.tensor([domain.inverse(float(value)) for value in members])
    found = domain.transform(raws)
    assert found.dtype == torch.float32
    assert found.tolist() == members


def test_wide_integers_come_out_as_themselves_in_float32() -> None:
    for domain in (Integer(0, 100_000), LogInteger(1, 100_000)):
        for value in (1, 2, 3, 4_999, 50_000, 99_998, 99_999, 100_000):
            assert at(domain, domain.inverse(value), torch.float32) == value


@pytest.mark.parametrize("domain", CONTINUOUS, ids=str)
@each_dtype
def test_start_on_an_end_is_moved_inside(domain: Domain, dtype: torch.dtype) -> None:
    """By one thousandth of the width (of its logarithm), so that the raw coordinate is finite and can move."""
    low, high = ends(domain)
    log = isinstance(domain, LogUniform)
    for end, share in ((low, EDGE), (high, 1 - EDGE)):
        raw = domain.inverse(end)
        assert abs(raw) == pytest.approx(math.log((1 - EDGE) / EDGE))
        expected = low * (high / low) ** share if log else low + (high - low) * share
        assert at(domain, raw, dtype) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [1e-5, 1e-4, 9e-4, 1 - 9e-4, 1 - 1e-4, 1 - 1e-5])
def test_start_near_an_end_is_not_moved(share: float) -> None:
    for domain, value in ((Uniform(0, 0.9), 0.9 * share), (LogUniform(1e-4, 1), 1e-4 ** (1 - share))):
        assert at(domain, domain.inverse(value), torch.float32) == pytest.approx(value, rel=1e-5)
        assert abs(domain.inverse(value)) < 14


@settings(max_examples=50, deadline=None)
@given(domain=uniforms() | log_uniforms() | integers() | grids())
def test_inverse_is_finite_and_ordered_at_both_ends(domain: Domain) -> None:
    low, high = ends(domain)
    bottom, top = domain.inverse(low), domain.inverse(high)
    assert math.isfinite(bottom)
    assert math.isfinite(top)
    assert bottom < top


# Shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "domain", [Integer(0, 1), Integer(2, 24), Integer(-5, 5), Integer(0, 12, 3), Uniform(0, 0.9, 0.1)], ids=str
)
def test_every_value_owns_an_equal_share(domain: Domain) -> None:
    """Of sigmoid(raw), both ends included: midpoints of 1,000 intervals per value fall 1,000 to each."""
    values = members(domain)
    points = 1000 * len(values)
    share = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    counts = Counter(round(value, 6) for value in domain.transform(share.logit()).tolist())
    assert counts == {round(value, 6): 1000 for value in values}


@pytest.mark.parametrize("domain", [LogInteger(1, 100), LogInteger(8, 64, step=8)], ids=str)
def test_logarithmic_integers_own_the_share_of_their_logarithm(domain: Integer) -> None:
    points = 200_000
    share = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    counts = Counter(domain.transform(share.logit()).tolist())
    assert set(counts) == set(members(domain))
    total = math.log((domain.high + domain.step) / domain.low)
    for value, count in counts.items():
        assert count == pytest.approx(points * math.log((value + domain.step) / value) / total, abs=2)


def test_all_members_are_reached_from_float32_noise() -> None:
    """From the coordinates that a run draws, not only from the inverse."""
    raw = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 3
    for domain in (Integer(2, 24), Integer(0, 5), LogUniform(1, 10, 1)):
        assert set(domain.transform(raw).tolist()) == set(members(domain))


def test_stepped_log_domain_rounds_to_the_nearest_multiple() -> None:
    domain, plain = LogUniform(1, 16, 1), LogUniform(1, 16)
    raw = torch.linspace(-6, 6, 201, dtype=torch.float64)
    assert torch.equal(domain.transform(raw), plain.transform(raw).round())


# Normal -----------------------------------------------------------------------------------------------------------


@given(value=st.floats(-1e6, 1e6))
def test_raw_of_a_normal_domain_is_its_value(value: float) -> None:
    assert Normal().inverse(value) == value
    assert at(Normal(2, 5), value) == value


@given(multiple=st.integers(-1000, 1000), off=st.floats(-0.49, 0.49))
def test_stepped_normal_rounds(multiple: int, off: float) -> None:
    domain = Normal(0, 1, 0.5)
    assert domain.inverse(multiple * 0.5) == multiple * 0.5
    assert at(domain, (multiple + off) * 0.5) == multiple * 0.5
    assert domain.contains(0.5 * multiple)
    assert not domain.contains(0.5 * multiple + 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_in_no_domain(value: float) -> None:
    for domain in (*BOUNDED, Normal(), Normal(0, 1, 0.5)):
        assert not domain.contains(value)
        with pytest.raises(ValueError, match="outside"):
            domain.inverse(value)


# Membership -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(domain=uniforms() | log_uniforms() | integers() | grids(), share=st.floats(1e-3, 10))
def test_outside_is_refused_by_name(domain: Domain, share: float) -> None:
    low, high = ends(domain)
    width = high - low
    for value in (low - share * width - 1, high + share * width + 1):
        assert not domain.contains(value)
        with pytest.raises(ValueError, match="outside") as caught:
            domain.inverse(value)
        assert domain.describe() in str(caught.value)


@given(domain=integers(), share=st.floats(0, 1), data=st.data())
def test_between_the_integers_is_outside(domain: Integer, share: float, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(members(domain)[:-1])) + share * domain.step
    assume(value not in members(domain))
    assert not domain.contains(value)


def test_no_float32_rounding_makes_a_member_an_outsider() -> None:
    """float32 of .3 is above .3, and float32 of .7 is no float64 multiple of .1."""
    for value in torch.tensor([0.1, 0.3, 0.7]).tolist():
        assert Uniform(0.1, 0.7).contains(value)
        assert Uniform(0.1, 0.7, 0.1).contains(value)
        assert LogUniform(0.1, 0.7).contains(value)
    for too_far in (0.1 - 1e-6, 0.7 + 1e-6):
        assert not Uniform(0.1, 0.7).contains(too_far)
    assert not LogUniform(1e-9, 1).contains(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(1, 1), "empty domain: low=1 must be below high=1"),
        (lambda: Uniform(1, 0), "empty domain"),
        (lambda: Uniform(0, math.inf), "empty domain"),
        (lambda: Uniform(math.nan, 1), "empty domain"),
        (lambda: LogUniform(2, 1), "empty domain"),
        (lambda: LogUniform(0, 1), "must be positive, got low=0"),
        (lambda: LogUniform(-1, 1), "must be positive, got low=-1"),
        (lambda: Integer(3, 3), "empty domain: low=3 must be below high=3"),
        (lambda: Integer(3, 2), "empty domain"),
        (lambda: Integer(0, math.inf), "empty domain"),  # type: ignore[arg-type]
        (lambda: Integer(math.nan, 3), "empty domain"),  # type: ignore[arg-type]
        (lambda: Integer(0, 2.5), "integer ends and steps"),  # type: ignore[arg-type]
        (lambda: Integer(0, 4, 0.5), "integer ends and steps"),  # type: ignore[arg-type]
        (lambda: LogInteger(0, 5), "must be positive, got low=0"),
        (lambda: Integer(1, 6, 2), "multiples of the step"),
        (lambda: Uniform(0, 1, 0.3), "multiples of the step"),
        (lambda: Uniform(0, 1, 0), "step of a domain must be positive"),
        (lambda: Uniform(0, 1, -0.5), "step of a domain must be positive"),
        (lambda: LogUniform(1, 10, math.nan), "step of a domain must be positive"),
        (lambda: Integer(0, 4, 0), "step of a domain must be positive"),
        (lambda: Normal(0, 0), "sd > 0"),
        (lambda: Normal(0, -1), "sd > 0"),
        (lambda: Normal(0, math.inf), "sd > 0"),
        (lambda: Normal(math.nan, 1), "sd > 0"),
        (lambda: Normal(0, 1, 0), "step of a domain must be positive"),
    ],
)
def test_what_is_no_domain_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (Uniform(0, 0.9), "[0, 0.9]"),
        (Uniform(0, 1, 0.25), "[0, 1] in steps of 0.25"),
        (LogUniform(1e-6, 0.1), "[1e-06, 0.1] on a log scale"),
        (Integer(2, 24), "the integers 2 to 24"),
        (LogInteger(2, 24, 2), "the integers 2 to 24 on a log scale in steps of 2"),
        (Normal(), "any real number"),
    ],
)
def test_domain_in_words(domain: Domain, words: str) -> None:
    assert domain.describe() == words
    assert isinstance(domain, Domain)


# In files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "kind", "more"),
    [
        (LogInteger(2, 8, 2), "Integer", {"low": 2, "high": 8, "step": 2, "log": True}),
        (Integer(2, 8), "Integer", {"low": 2, "high": 8, "step": 1, "log": False}),
        (LogUniform(0.1, 1.0), "LogUniform", {"low": 0.1, "high": 1.0, "step": None}),
        (Normal(1.0, 2.0), "Normal", {"mean": 1.0, "sd": 2.0, "step": None}),
    ],
    ids=str,
)
def test_files_hold_a_logarithmic_integer_as_an_integer_with_log(
    domain: Uniform | LogUniform | Integer | Normal, kind: str, more: dict[str, object]
) -> None:
    assert to_entry(domain) == (kind, more)
    assert from_entry(kind, more) == domain
