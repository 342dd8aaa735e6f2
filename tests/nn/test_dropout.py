"""Dropout against a slow reference, one example at a time, that draws again from the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tune_stn.nn import ChannelDropout, Slot, UnitDropout
from tune_stn.nn.dropout import MAX_RATE
from tune_stn.space.sample import Sample

RATES = [0.0, 0.3, 0.9, 1.0]
each_kind = pytest.mark.parametrize("kind", [UnitDropout, ChannelDropout])
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


@each_kind
def test_each_example_drops_at_its_own_rate_and_keeps_its_mean(kind: type[UnitDropout]) -> None:
    rates = [0.0, 0.05, 0.5, 0.9, 0.95, 1.0]
    units = 100_000
    outputs = seeded(kind("rate", Slot()), torch.ones(6, units), rates)
    for row, rate in zip(outputs, [0.0, 0.05, 0.5, 0.9, 0.95, 0.95], strict=True):
        five_sigma = 5 * (rate * (1 - rate) / units) ** 0.5
        assert float((row != 0).double().mean()) == pytest.approx(1 - rate, abs=five_sigma)
        assert float(row.double().mean()) == pytest.approx(1.0, abs=five_sigma / (1 - rate) + 1e-6)


@each_kind
def test_rate_of_one_is_cut_down_so_that_the_factor_stays_finite(kind: type[UnitDropout]) -> None:
    assert MAX_RATE == 0.95
    inputs = torch.ones(2, 5000)
    outputs = seeded(kind("rate", Slot()), inputs, [1.0, 0.95])
    assert torch.isfinite(outputs).all()
    assert sorted({round(value, 3) for value in outputs.flatten().tolist()}) == [0.0, 20.0]
    assert torch.equal(outputs, seeded(kind("rate", Slot()), inputs, [0.95]))


@each_kind
def test_one_shared_rate_is_that_rate_for_each(kind: type[UnitDropout]) -> None:
    layer, inputs = kind("rate", Slot()), positive(5, 8, 4)
    assert torch.equal(seeded(layer, inputs, [0.4]), seeded(layer, inputs, [0.4] * 5))
    assert not torch.equal(seeded(layer, inputs, [0.4]), inputs)


@each_kind
def test_example_depends_on_its_own_rate_only(kind: type[UnitDropout]) -> None:
    layer, inputs = kind("rate", Slot()), positive(3, 16, 4)
    before, after = seeded(layer, inputs, [0.5, 0.5, 0.5]), seeded(layer, inputs, [0.5, 0.0, 0.5])
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert torch.equal(after[1], inputs[1])
    assert not torch.equal(before[1], inputs[1])


@each_kind
def test_identity_in_eval_mode_even_without_a_sample(kind: type[UnitDropout]) -> None:
    layer, inputs = kind("rate", Slot()).eval(), positive(3, 4, 2)
    assert layer(inputs) is inputs
    with pytest.raises(RuntimeError, match="no hyperparameter sample"):
        layer.train()(inputs)


@each_kind
def test_seed_decides(kind: type[UnitDropout]) -> None:
    layer, inputs = kind("rate", Slot()), positive(3, 16, 4)
    assert torch.equal(seeded(layer, inputs, [0.5], 1), seeded(layer, inputs, [0.5], 1))
    assert not torch.equal(seeded(layer, inputs, [0.5], 1), seeded(layer, inputs, [0.5], 2))


@each_kind
def test_gradient_is_the_mask_and_inputs_are_left_alone(kind: type[UnitDropout]) -> None:
    inputs = positive(3, 4, 2).requires_grad_()
    original = inputs.detach().clone()
    outputs = seeded(kind("rate", Slot()), inputs, [0.2, 0.5, 0.8])
    (gradient,) = torch.autograd.grad(outputs.sum(), [inputs])
    torch.testing.assert_close(gradient, (outputs / inputs).detach())
    assert torch.equal(inputs.detach(), original)


@each_kind
def test_rates_for_another_batch_are_refused(kind: type[UnitDropout]) -> None:
    with pytest.raises(ValueError, match=r"dropout 'rate' got an input of shape \(4, 2\) with hyperparameters for 3"):
        seeded(kind("rate", Slot()), positive(4, 2), [0.1, 0.2, 0.3])


def test_half_precision_stays_half() -> None:
    assert seeded(UnitDropout("rate", Slot()), positive(4, 8).bfloat16(), RATES).dtype == torch.bfloat16
    assert "rate='rate'" in repr(UnitDropout("rate", Slot()))
