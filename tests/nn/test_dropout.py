"""Dropout against a slow reference, one example at a time, that draws again from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn import (
    BranchDropout,
    ChannelDropout,
    LockedDropout,
    SequenceDropout,
    Slot,
    StochasticDepth,
    UnitDropout,
    self_tuning,
)
from tune_stn.nn.dropout import MAX_RATE
from tune_stn.nn.registry import DROPOUTS
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

Kind = Callable[[str, Slot], UnitDropout]
RATES = [0.0, 0.3, 0.9, 1.0]
batch_first_sequence: Kind = partial(SequenceDropout, batch_first=True)
KINDS: dict[str, Kind] = {
    "unit": UnitDropout,
    "channel": ChannelDropout,
    "sequence": batch_first_sequence,
    "branch": BranchDropout,
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def seeded(layer: UnitDropout, inputs: Tensor, rates: list[float], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    with layer.slot.using(Sample({"rate": torch.tensor(rates)})):
        outputs: Tensor = layer(inputs)
    return outputs


def positive(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9), dtype=dtype) + 0.5


@each_dtype
@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 2, 3), (4, 2, 3, 3)])
def test_units_are_those_of_the_slow_dropout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = positive(*shape, dtype=dtype)
    outputs = seeded(UnitDropout("rate", Slot()), inputs, RATES)
    torch.manual_seed(0)
    draws = torch.rand(shape, dtype=dtype)
    expected = torch.zeros_like(inputs)
    for i, rate in enumerate(min(rate, 0.95) for rate in RATES):
        for element in (draws[i] < 1 - rate).nonzero():
            where = (i, *element.tolist())
            expected[where] = inputs[where] / (1 - rate)
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs, expected, rtol=2e-6, atol=0.0)  # the rate itself is float32
    assert torch.equal(outputs[0], inputs[0])


@each_kind
def test_of_a_dual_tensor_value_and_tangent_lose_the_same(kind: Kind) -> None:
    """Both are what a plain tensor would be, and what torch makes of a product with the mask."""
    inputs, change = positive(4, 3, 2), positive(4, 3, 2) - 1
    layer = kind("rate", Slot())
    expected, mask = (seeded(layer, each, RATES) for each in (inputs, torch.ones_like(inputs)))
    torch.manual_seed(0)
    with forward_ad.dual_level(), layer.slot.using(Sample({"rate": torch.tensor(RATES)}, linearise=True)):
        outputs = forward_ad.unpack_dual(layer(forward_ad.make_dual(inputs, change)))  # type: ignore[no-untyped-call]
        torch.manual_seed(0)
        assert torch.equal(layer(inputs), expected)  # a network begins with a plain one
    assert torch.equal(outputs.primal, expected)
    assert torch.equal(outputs.tangent, change * mask)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 3), (4, 6, 2, 2, 2)])
def test_channels_are_dropped_whole_and_as_the_slow_dropout_does(shape: tuple[int, ...]) -> None:
    inputs = positive(*shape)
    outputs = seeded(ChannelDropout("rate", Slot()), inputs, RATES)
    torch.manual_seed(0)
    draws = torch.rand(shape[:2] + (1,) * (len(shape) - 2)).flatten(1)
    for i, rate in enumerate(min(rate, 0.95) for rate in RATES):
        for channel in range(6):
            if draws[i, channel] < 1 - rate:
                torch.testing.assert_close(outputs[i, channel], inputs[i, channel] / (1 - rate))
            else:
                assert not outputs[i, channel].any()
    dropped = (outputs == 0).flatten(2).float().mean(2) if len(shape) > 2 else (outputs == 0).float()
    assert set(dropped.unique().tolist()) == {0.0, 1.0}  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("shape", [(4, 3, 6), (4, 3, 2, 5)])
def test_sequence_mask_is_one_for_all_times_as_in_the_slow_dropout(shape: tuple[int, ...]) -> None:
    inputs = positive(*shape)
    outputs = seeded(batch_first_sequence("rate", Slot()), inputs, RATES)
    torch.manual_seed(0)
    draws = torch.rand(shape[0], *shape[2:])
    for i, rate in enumerate(min(rate, 0.95) for rate in RATES):
        for time in range(shape[1]):
            for element in torch.ones(shape[2:]).nonzero().tolist():
                kept = draws[(i, *element)] < 1 - rate
                expected = inputs[(i, time, *element)] / (1 - rate) if kept else torch.zeros(())
                torch.testing.assert_close(outputs[(i, time, *element)], expected)
    time_first = seeded(SequenceDropout("rate", Slot()), inputs.transpose(0, 1), RATES)
    assert torch.equal(time_first.transpose(0, 1), outputs)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 2)])
def test_branches_are_dropped_whole_and_as_the_slow_dropout_does(shape: tuple[int, ...]) -> None:
    inputs = positive(*shape)
    for seed in range(20):
        outputs = seeded(BranchDropout("rate", Slot()), inputs, RATES, seed)
        torch.manual_seed(seed)
        draws = torch.rand(4)
        for i, rate in enumerate(min(rate, 0.95) for rate in RATES):
            kept = draws[i] < 1 - rate
            torch.testing.assert_close(outputs[i], inputs[i] / (1 - rate) if kept else torch.zeros_like(inputs[i]))


MANY: dict[str, Callable[[int], Tensor]] = {
    "unit": lambda units: torch.ones(6, units),
    "channel": lambda units: torch.ones(6, units),
    "sequence": lambda units: torch.ones(6, 1, units),
    "branch": lambda units: torch.ones(6 * units, 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_example_drops_at_its_own_rate_and_keeps_its_mean(name: str) -> None:
    rates = [0.0, 0.05, 0.5, 0.9, 0.95, 1.0]
    units = 100_000
    inputs = MANY[name](units)
    each = torch.tensor(rates).repeat_interleave(len(inputs) // 6).tolist()
    outputs = seeded(KINDS[name]("rate", Slot()), inputs, each).view(6, units)
    for row, rate in zip(outputs, [0.0, 0.05, 0.5, 0.9, 0.95, 0.95], strict=True):
        five_sigma = 5 * (rate * (1 - rate) / units) ** 0.5
        assert float((row != 0).double().mean()) == pytest.approx(1 - rate, abs=five_sigma)
        assert float(row.double().mean()) == pytest.approx(1.0, abs=five_sigma / (1 - rate) + 1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_rate_of_one_is_cut_down_so_that_the_factor_stays_finite(name: str) -> None:
    assert MAX_RATE == 0.95
    layer, inputs = KINDS[name]("rate", Slot()), MANY[name](5000)
    half = len(inputs) // 2
    outputs = seeded(layer, inputs, [1.0] * half + [0.95] * half)
    assert torch.isfinite(outputs).all()
    assert sorted({round(value, 3) for value in outputs.flatten().tolist()}) == [0.0, 20.0]
    assert torch.equal(outputs, seeded(layer, inputs, [0.95]))


@each_kind
def test_one_shared_rate_is_that_rate_for_each(kind: Kind) -> None:
    layer, inputs = kind("rate", Slot()), positive(5, 8, 4)
    assert torch.equal(seeded(layer, inputs, [0.4]), seeded(layer, inputs, [0.4] * 5))
    assert not torch.equal(seeded(layer, inputs, [0.4]), inputs)
    assert torch.equal(seeded(layer, inputs, [0.0]), inputs)


@each_kind
def test_example_depends_on_its_own_rate_only(kind: Kind) -> None:
    layer, inputs = kind("rate", Slot()), positive(3, 16, 4)
    before, after = seeded(layer, inputs, [0.5, 0.5, 0.5]), seeded(layer, inputs, [0.5, 0.0, 0.5])
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert torch.equal(after[1], inputs[1])
    assert not torch.equal(before[1], inputs[1])


@each_kind
def test_identity_in_eval_mode_even_without_a_sample(kind: Kind) -> None:
    layer, inputs = kind("rate", Slot()).eval(), positive(3, 4, 2)
    assert layer(inputs) is inputs
    with pytest.raises(RuntimeError, match="no hyperparameter sample"):
        layer.train()(inputs)


@each_kind
def test_seed_decides(kind: Kind) -> None:
    layer, inputs = kind("rate", Slot()), positive(32, 16, 4)
    assert torch.equal(seeded(layer, inputs, [0.5], 1), seeded(layer, inputs, [0.5], 1))
    assert not torch.equal(seeded(layer, inputs, [0.5], 1), seeded(layer, inputs, [0.5], 2))


@each_kind
def test_gradient_is_the_mask_and_inputs_are_left_alone(kind: Kind) -> None:
    inputs = positive(3, 4, 2).requires_grad_()
    original = inputs.detach().clone()
    outputs = seeded(kind("rate", Slot()), inputs, [0.2, 0.5, 0.8])
    (gradient,) = torch.autograd.grad(outputs.sum(), [inputs])
    torch.testing.assert_close(gradient, (outputs / inputs).detach())
    assert torch.equal(inputs.detach(), original)


@each_kind
def test_rates_for_another_batch_are_refused(kind: Kind) -> None:
    with pytest.raises(
        ValueError, match=r"dropout 'rate' got an input of shape \(4, 2, 3\) with hyperparameters for 3"
    ):
        seeded(kind("rate", Slot()), positive(4, 2, 3), [0.1, 0.2, 0.3])


def test_sequence_with_its_axes_the_other_way_round_says_which_it_looked_at() -> None:
    with pytest.raises(
        ValueError, match=r"'rate' with the batch on axis 1, here shown first, got .* shape \(2, 4, 3\)"
    ):
        seeded(SequenceDropout("rate", Slot()), positive(4, 2, 3), RATES)
    with pytest.raises(ValueError, match=r"shape \(4, 3\); accepted are \(time, batch, features\), or"):
        seeded(batch_first_sequence("rate", Slot()), positive(4, 3), RATES)


@each_kind
def test_half_precision_stays_half_and_small_rates_are_not_lost(kind: Kind) -> None:
    assert seeded(kind("rate", Slot()), positive(4, 8, 2).bfloat16(), RATES).dtype == torch.bfloat16
    ones = torch.ones(400, 1, 400, dtype=torch.bfloat16)
    dropped = (seeded(UnitDropout("rate", Slot()), ones, [0.001]) == 0).double().mean()
    assert float(dropped) == pytest.approx(0.001, abs=5 * (0.001 / ones.numel()) ** 0.5)


def test_repr_names_the_hyperparameter() -> None:
    assert repr(SequenceDropout("rate", Slot())) == "SequenceDropout(rate='rate')"


# In the place of a user's modules -------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """As others name and write it."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("this one is replaced")


class RateAsArgument(nn.Module):
    """As in the AWD-LSTM code: inputs `(time, batch, features)`, the rate is given at the call."""

    def forward(self, x: Tensor, dropout: float = 0.5) -> Tensor:
        raise AssertionError("this one is replaced")


def outputs_of(module: nn.Module, kind: type[UnitDropout], inputs: Tensor, *args: float, **kwargs: float) -> Tensor:
    """Of the form that replaces `module`, at the `RATES`."""
    network = nn.ModuleDict({"drop": module, "out": nn.Linear(2, 2)})
    model = self_tuning(network, SearchSpace({"rate": Uniform(0, 1)}), start={"rate": 0.5}, dropout={"drop": "rate"})
    drop = model.network.get_submodule("drop")
    assert type(drop) is kind
    assert drop.training == module.training
    assert model.conversion.bound == {"drop": "rate"}
    torch.manual_seed(0)
    with model.using(Sample({"rate": torch.tensor(RATES)})):
        outputs: Tensor = drop(inputs, *args, **kwargs)
    return outputs


def test_modules_of_ours_are_replaced_by_their_reading_forms() -> None:
    inputs = positive(4, 5, 3)
    first = outputs_of(LockedDropout(0.2, batch_first=True), SequenceDropout, inputs)
    assert torch.equal(first, seeded(batch_first_sequence("rate", Slot()), inputs, RATES))
    second = outputs_of(LockedDropout(0.2), SequenceDropout, inputs.transpose(0, 1))
    assert torch.equal(second.transpose(0, 1), first)
    branch = outputs_of(StochasticDepth(0.2), BranchDropout, inputs)
    assert torch.equal(branch, seeded(BranchDropout("rate", Slot()), inputs, RATES))
    assert outputs_of(StochasticDepth(0.2).eval(), BranchDropout, inputs) is inputs


def test_a_class_of_somebody_else_joins_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DROPOUTS, DropPath, BranchDropout)
    monkeypatch.setitem(DROPOUTS, RateAsArgument, SequenceDropout)
    inputs = positive(4, 5, 3)
    branch = outputs_of(DropPath(0.1), BranchDropout, inputs)
    assert torch.equal(branch, seeded(BranchDropout("rate", Slot()), inputs, RATES))
    expected = seeded(SequenceDropout("rate", Slot()), inputs.transpose(0, 1), RATES)
    for args, kwargs in (((0.3,), {}), ((), {"dropout": 0.3})):
        found = outputs_of(RateAsArgument(), SequenceDropout, inputs.transpose(0, 1), *args, **kwargs)
        assert torch.equal(found, expected)


def test_a_model_may_read_the_rate_that_the_batch_shares() -> None:
    layer = UnitDropout("rate", Slot())
    for rate, expected in ((0.3, 0.3), (1.0, MAX_RATE)):
        with layer.slot.using(Sample({"rate": torch.tensor([rate])})):
            assert layer.p == pytest.approx(expected)
    with (
        layer.slot.using(Sample({"rate": torch.tensor([0.3, 0.4])})),
        pytest.raises(ValueError, match=r"as one number, but 'rate' has a value for each of 2"),
    ):
        layer.p  # noqa: B018
