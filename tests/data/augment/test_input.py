"""Noise on inputs against slow references, one example at a time, that draw again from the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tune_stn.data.augment import Augmentation, InputDropout, InputNoise, InputScale
from tune_stn.space.sample import Sample

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def sample(**values: list[float]) -> Sample:
    return Sample({name: torch.tensor(value) for name, value in values.items()})


def seeded(augment: Augmentation, inputs: Tensor, drawn: Sample, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return augment(inputs, drawn)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Positive everywhere, so that a zero is a dropped element."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(9), dtype=dtype) + 0.5


@each_dtype
def test_dropout_is_the_slow_dropout(dtype: torch.dtype) -> None:
    rates = [0.0, 0.3, 0.9, 1.0]
    inputs = images(4, 2, 3, dtype=dtype)
    augmented = seeded(InputDropout(), inputs, sample(input_dropout=rates))
    torch.manual_seed(0)
    draws = torch.rand(inputs.shape)
    expected = torch.zeros_like(inputs)
    for i, rate in enumerate(min(rate, 0.95) for rate in rates):
        for element in (draws[i] >= rate).nonzero():
            where = (i, *element.tolist())
            expected[where] = inputs[where] / (1 - rate)
    assert augmented.dtype == dtype
    torch.testing.assert_close(augmented, expected, rtol=2e-6, atol=0.0)  # the rate itself is float32
    assert torch.equal(augmented == 0, expected == 0)


def test_dropout_keeps_its_fraction_and_the_mean_of_each_example() -> None:
    rates = [0.0, 0.05, 0.5, 0.9, 0.95, 1.0]
    augmented = seeded(InputDropout(), torch.ones(6, 100_000), sample(input_dropout=rates))
    for row, rate in zip(augmented, [0.0, 0.05, 0.5, 0.9, 0.95, 0.95], strict=True):
        five_sigma = 5 * (rate * (1 - rate) / 100_000) ** 0.5
        assert float((row != 0).double().mean()) == pytest.approx(1 - rate, abs=five_sigma)
        assert float(row.double().mean()) == pytest.approx(1.0, abs=five_sigma / (1 - rate) + 1e-6)


def test_dropout_of_zero_is_no_change() -> None:
    inputs = images(3, 4)
    assert torch.equal(seeded(InputDropout(), inputs, sample(input_dropout=[0.0])), inputs)


@each_dtype
def test_scale_is_the_slow_scale(dtype: torch.dtype) -> None:
    scales = [0.0, 0.1, 0.3, 3.0]
    inputs = images(4, 3, 2, 2, dtype=dtype)
    augmented = seeded(InputScale(), inputs, sample(input_scale=scales))
    torch.manual_seed(0)
    draws = torch.rand(4).tolist()
    factors = [1 / (1 + s) + (1 + s - 1 / (1 + s)) * u for s, u in zip(scales, draws, strict=True)]
    expected = torch.stack([image * factor for image, factor in zip(inputs, factors, strict=True)])
    assert augmented.dtype == dtype
    torch.testing.assert_close(augmented, expected, rtol=2e-6, atol=0.0)
    assert torch.equal(augmented[0], inputs[0])


def test_scale_is_uniform_between_its_ends() -> None:
    factors = seeded(InputScale(), torch.ones(50_000, 1), sample(input_scale=[1.0])).squeeze(1)
    assert 0.5 <= float(factors.min()) < 0.501
    assert 1.999 < float(factors.max()) <= 2.0
    quartiles = torch.quantile(factors, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([0.875, 1.25, 1.625]), rtol=0, atol=0.02)


@each_dtype
def test_noise_is_the_slow_noise(dtype: torch.dtype) -> None:
    deviations = [0.0, 0.1, 2.0]
    inputs = images(3, 2, 4, dtype=dtype)
    augmented = seeded(InputNoise(), inputs, sample(input_noise=deviations))
    torch.manual_seed(0)
    draws = torch.randn(inputs.shape)
    expected = torch.stack([inputs[i] + sd * draws[i] for i, sd in enumerate(deviations)])
    assert augmented.dtype == dtype
    torch.testing.assert_close(augmented, expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(augmented[0], inputs[0])


def test_noise_has_the_deviation_of_each_example() -> None:
    augmented = seeded(InputNoise(), torch.ones(3, 50_000), sample(input_noise=[0.0, 0.2, 1.5]))
    torch.testing.assert_close(augmented.mean(1), torch.ones(3), rtol=0, atol=0.03)
    torch.testing.assert_close(augmented.std(1), torch.tensor([0.0, 0.2, 1.5]), rtol=0.02, atol=0)
