"""The tunable state: start values, draws, entropy and their gradients."""

from __future__ import annotations

import io
import math
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tune_stn.space import Constants, Domain, Integer, LogUniform, Normal, Sample, SearchSpace, Tunable, Uniform
from tune_stn.space.tunable import inverse_softplus

DOMAINS: dict[str, Domain] = {
    "rate": Uniform(0, 0.9),
    "decay": LogUniform(1e-6, 1e-1),
    "holes": Integer(0, 4),
    "shift": Normal(),
}
START = {"rate": 0.3, "decay": 1e-3, "holes": 3, "shift": -1.5}
SPACE = SearchSpace(DOMAINS)
each_state = pytest.mark.parametrize("kind", [Tunable, Constants])


def tunable(*, per_batch: tuple[str, ...] = (), scale: float = 0.5) -> Tunable:
    return Tunable(SearchSpace(DOMAINS, per_batch=per_batch), START, scale=scale)


@each_state
def test_start_values_come_out_in_order(kind: type[Tunable] | type[Constants]) -> None:
    backwards = dict(reversed(START.items()))
    values = kind(SPACE, backwards).mean_values()
    assert list(values) == list(SPACE)
    assert values == pytest.approx(START, rel=1e-5)
    assert values["holes"] == 3


@each_state
@pytest.mark.parametrize("change", [{"rate": 0.91}, {"holes": 1.5}, {"other": 1}])
def test_wrong_start_is_refused(kind: type[Tunable] | type[Constants], change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        kind(SPACE, {**START, **change})
    with pytest.raises(ValueError, match="no start value for shift"):
        kind(SPACE, {name: START[name] for name in ("rate", "decay", "holes")})


@each_state
def test_values_are_accepted_as_start_values_again(kind: type[Tunable] | type[Constants]) -> None:
    """A schedule is replayed and a population exploits: float32 rounding must not make a value an outsider."""
    space = SearchSpace({"a": Uniform(0.1, 0.3), "b": Uniform(0, 0.7, 0.1), "c": LogUniform(0.1, 0.3)})
    state = kind(space, {"a": 0.3, "b": 0.7, "c": 0.1})
    if isinstance(state, Tunable):
        with torch.no_grad():
            state.raw.copy_(torch.tensor([1e4, 1e4, -1e4]))
    again = kind(space, state.mean_values())
    assert again.mean_values() == pytest.approx(state.mean_values(), rel=1e-2)


def test_constants_are_used_exactly_bounds_included() -> None:
    space = SearchSpace({"rate": Uniform(0, 0.5), "decay": LogUniform(1e-6, 1.0)})
    state = Constants(space, {"rate": 0.0, "decay": 1.0})
    assert state.mean_values() == {"rate": 0.0, "decay": 1.0}
    sample = state.constant_sample()
    assert {name: value.tolist() for name, value in sample.values.items()} == {"rate": [0.0], "decay": [1.0]}
    assert sample.response_input is None
    assert list(state.parameters()) == []


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        tunable(scale=scale)


@given(value=st.floats(1e-30, 1e6))
def test_inverse_softplus_there_and_back(value: float) -> None:
    raw = torch.tensor(inverse_softplus(value), dtype=torch.float64)
    # threshold: above 20 torch takes softplus(x) = x, off by exp(-20).
    assert float(torch.nn.functional.softplus(raw)) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 30.0])
def test_scale_comes_out_as_itself(scale: float) -> None:
    assert tunable(scale=scale).scale().tolist() == pytest.approx([scale] * 4, rel=1e-5)


# Draws ------------------------------------------------------------------------------------------------------------


def test_draws_are_gaussian_in_raw_space_around_the_mean() -> None:
    state = tunable(scale=0.5)
    with torch.no_grad():
        state.rho.copy_(torch.tensor([inverse_softplus(s) for s in (0.1, 0.5, 1.0, 2.0)]))
    torch.manual_seed(0)
    n = 40_000
    draws = state.perturbed(n).detach()
    assert draws.shape == (n, 4)
    noise = (draws - state.raw.detach()) / state.scale().detach()
    # Five standard errors of mean, standard deviation and correlation.
    assert float(noise.mean(0).abs().max()) < 5 / n**0.5
    assert float((noise.std(0) - 1).abs().max()) < 5 / (2 * n) ** 0.5
    assert float((torch.corrcoef(noise.T) - torch.eye(4)).abs().max()) < 5 / n**0.5
    assert float((noise**3).mean(0).abs().max()) < 5 * (15 / n) ** 0.5
    assert float(((noise**4).mean(0) - 3).abs().max()) < 5 * (96 / n) ** 0.5


def test_per_batch_columns_hold_one_draw_and_the_others_do_not() -> None:
    state = tunable(per_batch=("decay", "shift"))
    torch.manual_seed(0)
    draws = state.perturbed(50).detach()
    distinct = [column.unique().numel() for column in draws.unbind(1)]  # type: ignore[no-untyped-call]
    assert distinct == [50, 1, 50, 1]
    assert bool((draws[0, [1, 3]] != state.raw.detach()[[1, 3]]).all())
    values = state.values(draws)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "rate": (50,),
        "decay": (1,),
        "holes": (50,),
        "shift": (1,),
    }
    assert float(values["shift"]) == float(draws[0, 3])


def test_per_batch_draws_change_from_batch_to_batch() -> None:
    state = tunable(per_batch=("rate",))
    torch.manual_seed(0)
    firsts = torch.stack([state.perturbed(3).detach()[0, 0] for _ in range(2000)])
    assert float(firsts.mean()) == pytest.approx(float(state.raw[0].detach()), abs=5 * 0.5 / 2000**0.5)
    assert float(firsts.std()) == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)


def test_one_row_serves_a_batch_that_shares_everything() -> None:
    """So that responses merge, and models that move the batch off the first axis work."""
    state = tunable(per_batch=tuple(DOMAINS))
    assert state.perturbed(64).shape == (1, 4)
    assert {tuple(value.shape) for value in state.values(state.perturbed(64)).values()} == {(1,)}


def test_origin_is_the_start_and_stays_there() -> None:
    state = tunable()
    start = state.raw.detach().clone()
    with torch.no_grad():
        state.raw.add_(3.0)
    assert torch.equal(state.origin, start)
    assert not state.origin.requires_grad


def test_the_global_seed_decides() -> None:
    state = tunable()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return state.perturbed(5).detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_gradients_of_a_draw_reach_raw_and_rho_and_values_carry_none() -> None:
    state = tunable()
    torch.manual_seed(0)
    draws = state.perturbed(7)
    noise = ((draws - state.raw) / state.scale()).detach()
    by_raw, by_rho = torch.autograd.grad(draws.sum(), [state.raw, state.rho])
    torch.testing.assert_close(by_raw, torch.full((4,), 7.0))
    torch.testing.assert_close(by_rho, noise.sum(0) * torch.sigmoid(state.rho.detach()), rtol=1e-4, atol=1e-5)
    assert not any(value.requires_grad for value in state.values(state.perturbed(7)).values())
    assert not any(value.requires_grad for value in state.constant_sample().values.values())


def test_values_are_the_domains_of_the_columns() -> None:
    state = tunable()
    torch.manual_seed(0)
    draws = state.perturbed(9).detach()
    values = state.values(draws)
    for index, (name, domain) in enumerate(SPACE.items()):
        assert torch.equal(values[name], domain.transform(draws[:, index]))


def test_constant_sample_is_the_mean_with_no_response() -> None:
    state = tunable()
    sample = state.constant_sample()
    assert sample.response_input is None
    assert not sample.linearise
    assert {name: float(value) for name, value in sample.values.items()} == state.mean_values()
    assert {tuple(value.shape) for value in sample.values.values()} == {(1,)}
    assert sample["rate"] is sample.values["rate"]


# Entropy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1.0, 7.0])
def test_entropy_is_that_of_the_gaussian(scale: float) -> None:
    state = tunable(scale=scale).double()
    gaussian = torch.distributions.Normal(state.raw, state.scale())
    expected = gaussian.entropy().sum()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(state.entropy(), cast(Tensor, expected), rtol=1e-9, atol=1e-9)
    by_hand = 4 * math.log(scale * math.sqrt(2 * math.pi * math.e))
    assert float(state.entropy().detach()) == pytest.approx(by_hand, rel=1e-5, abs=1e-5)


def test_entropy_bonus_raises_the_scale_and_leaves_raw() -> None:
    """The hyper-step minimises `loss - tau * entropy`."""
    state = tunable(scale=0.5)
    before, raw = state.scale().detach().clone(), state.raw.detach().clone()
    optimizer = torch.optim.SGD([state.raw, state.rho], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-1e-1 * state.entropy()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert bool((state.scale() > before).all())
    assert torch.equal(state.raw, raw)
    assert torch.autograd.gradcheck(lambda rho: torch.log(torch.nn.functional.softplus(rho)), state.rho.double())


# Bounds -----------------------------------------------------------------------------------------------------------


def moved(state: Tunable, raw: float, rho: float) -> Tunable:
    with torch.no_grad():
        state.raw.fill_(raw)
        state.rho.fill_(rho)
    return state


@pytest.mark.parametrize("sign", [1, -1])
def test_confined_coordinates_are_those_of_the_ends(sign: int) -> None:
    """The value is that of the end, nudged inside as a start value on it is; a domain without ends has none."""
    state = moved(tunable(), sign * 50.0, sign * 50.0)
    state.confine()
    ends = {"rate": (0.0, 0.9), "decay": (1e-6, 1e-1), "holes": (0, 4)}
    expected = [SPACE[name].inverse(high if sign > 0 else low) for name, (low, high) in ends.items()]
    assert state.raw.tolist() == pytest.approx([*expected, sign * 50.0], rel=1e-6)
    assert state.scale().tolist() == pytest.approx([2.0 if sign > 0 else 0.01] * 4)


def test_confining_leaves_what_is_inside() -> None:
    state = moved(tunable(), 0.7, 0.3)
    state.confine()
    assert state.raw.tolist() == pytest.approx([0.7] * 4)
    assert state.rho.tolist() == pytest.approx([0.3] * 4)


def test_bounds_reach_out_to_the_start() -> None:
    """A start value nearer to the end than its coordinate stands for, and scales beyond the usual."""
    start = {**START, "rate": 1e-5, "decay": 1e-1 * (1 - 1e-4)}
    for scale, lowest, highest in ((1e-3, 1e-3, 2.0), (5.0, 0.01, 5.0)):
        state = Tunable(SPACE, start, scale=scale)
        before = state.raw.detach().clone(), state.rho.detach().clone()
        state.confine()
        assert torch.equal(state.raw, before[0])
        torch.testing.assert_close(state.rho.detach(), before[1])
        for rho, end in ((-50.0, lowest), (50.0, highest)):
            moved(state, 0.0, rho).confine()
            assert state.scale().tolist() == pytest.approx([end] * 4)


def test_bounds_do_not_hide_what_is_not_a_number() -> None:
    state = moved(tunable(), math.nan, math.nan)
    state.confine()
    assert bool(state.raw.isnan().all())
    assert bool(state.rho.isnan().all())


def test_bounds_follow_the_type_and_are_no_part_of_the_state() -> None:
    state = moved(tunable().double(), 1e9, 0.0)
    state.confine()
    assert state.lowest.dtype == torch.float64
    assert float(state.raw[0].detach()) == pytest.approx(math.log(999))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relative_speed_takes_the_slope_of_the_transform_out(dtype: torch.dtype) -> None:
    """A quarter over s (1 - s), at most ten; one for a domain without ends."""
    state = tunable().to(dtype)
    share = torch.tensor([0.5, 0.1, 0.9, 0.9], dtype=dtype)
    speed = state.relative_speed(torch.logit(share))
    torch.testing.assert_close(speed, torch.tensor([1, 0.25 / 0.09, 0.25 / 0.09, 1], dtype=dtype), rtol=1e-5, atol=0)
    assert not speed.requires_grad
    assert state.relative_speed(torch.tensor([9.0, -9.0, 100.0, 9.0], dtype=dtype)).tolist() == [10, 10, 10, 1]


def test_widening_goes_up_to_the_start_and_narrows_nothing() -> None:
    state = tunable(scale=0.5)
    with torch.no_grad():
        state.rho.copy_(torch.tensor([inverse_softplus(scale) for scale in (0.02, 0.3, 0.5, 1.7)]))
    before = state.rho.detach().clone()
    state.widen(2.0)
    assert state.scale().tolist() == pytest.approx([0.04, 0.5, 0.5, 1.7])
    assert torch.equal(state.rho[2:].detach(), before[2:])
    after = state.rho.detach().clone()
    state.widen(1.0)
    assert torch.equal(state.rho.detach(), after)


# State ------------------------------------------------------------------------------------------------------------


@each_state
def test_state_dict_is_plain_tensors_and_restores(kind: type[Tunable] | type[Constants]) -> None:
    state = kind(SPACE, START)
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    other = kind(SPACE, {**START, "rate": 0.7, "holes": 0})
    other.load_state_dict(torch.load(buffer, weights_only=True))
    if isinstance(other, Tunable):
        assert isinstance(state, Tunable)
        assert torch.equal(other.origin, state.origin)  # or the response would read other inputs than it learned
    assert other.mean_values() == state.mean_values()
    assert set(state.state_dict()) == ({"raw", "rho", "origin"} if kind is Tunable else {"value"})


@pytest.mark.parametrize("kind", [Tunable, Constants])
def test_fixed_values_are_read_but_not_recorded(kind: type[Tunable] | type[Constants]) -> None:
    space = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 1)}).fix({"other": 0.25})
    hyper = kind(space, {"rate": 0.1})
    assert list(hyper.mean_values()) == ["rate"]
    samples = [hyper.constant_sample()]
    if isinstance(hyper, Tunable):
        assert hyper.raw.shape == (1,)
        samples.append(Sample(hyper.values(hyper.perturbed(5))))
    for sample in samples:
        assert sample["other"].tolist() == [0.25]
