"""Augmentations against slow references, one example at a time, that draw again from the same seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tune_stn.data.augment import Augmentation, Cutout, InputDropout, InputScale, erased_pixels
from tune_stn.space.sample import Sample

DTYPES = [torch.float32, torch.float64]
AUGMENTATIONS: list[tuple[Augmentation, tuple[float, ...]]] = [
    (Cutout(max_holes=3), (2.0, 4.0)),
    (InputDropout(), (0.4,)),
    (InputScale(), (0.3,)),
]
each = pytest.mark.parametrize(
    ("augment", "values"),
    AUGMENTATIONS,
    ids=lambda it: type(it).__name__ if not isinstance(it, tuple) else "",
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def sample(**values: list[float]) -> Sample:
    return Sample({name: torch.tensor(value) for name, value in values.items()})


def seeded(augment: Augmentation, inputs: Tensor, drawn: Sample, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return augment(inputs, drawn)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Positive everywhere, so that a zero is an erased element."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(9), dtype=dtype) + 0.5


# Cutout


def slow_cutout(inputs: Tensor, rows: Tensor, columns: Tensor, holes: list[int], length: list[int]) -> Tensor:
    """Square after square, image after image, as the definition says."""
    result = inputs.clone()
    height, width = inputs.shape[-2:]
    for i in range(len(inputs)):
        for k in range(min(holes[i], rows.shape[1])):
            top, left = int(rows[i, k]) - length[i] // 2, int(columns[i, k]) - length[i] // 2
            for y in range(max(top, 0), min(top + length[i], height)):
                for x in range(max(left, 0), min(left + length[i], width)):
                    result[i, ..., y, x] = 0
    return result


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_cutout_is_the_slow_cutout(data: st.DataObject, seed: int) -> None:
    batch, height, width = (data.draw(st.integers(1, 6)) for _ in range(3))
    middle = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    max_holes = data.draw(st.integers(1, 5))
    holes = data.draw(st.lists(st.integers(0, max_holes + 1), min_size=batch, max_size=batch))
    length = data.draw(st.lists(st.integers(0, 8), min_size=batch, max_size=batch))
    dtype = data.draw(st.sampled_from([*DTYPES, torch.uint8]))
    inputs = (images(batch, *middle, height, width) * 10).to(dtype)
    drawn = sample(cutout_holes=[float(n) for n in holes], cutout_length=[float(n) for n in length])
    augmented = seeded(Cutout(max_holes=max_holes), inputs, drawn, seed)
    torch.manual_seed(seed)
    rows = torch.randint(height, (batch, max_holes))
    columns = torch.randint(width, (batch, max_holes))
    assert augmented.dtype == dtype
    assert torch.equal(augmented, slow_cutout(inputs, rows, columns, holes, length))


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, ["....", "....", "....", "...."]),
        (1, ["....", ".#..", "....", "...."]),
        (2, ["##..", "##..", "....", "...."]),
        (3, ["###.", "###.", "###.", "...."]),
        (4, ["###.", "###.", "###.", "...."]),  # clipped above and to the left
        (9, ["####", "####", "####", "####"]),
    ],
)
def test_one_square_by_eye(length: int, expected: list[str]) -> None:
    one = torch.tensor([[1]])
    erased = erased_pixels(one, one, one, torch.tensor([[length]]), size=(4, 4))
    assert ["".join("#" if pixel else "." for pixel in row) for row in erased[0].tolist()] == expected


def test_both_ends_of_holes_and_length_are_reached() -> None:
    """31 squares, the most there can be, and each of them in its own place."""
    diagonal = torch.arange(31).unsqueeze(0)
    for holes in (0, 1, 30, 31, 32):
        erased = erased_pixels(diagonal, diagonal, torch.tensor([[holes]]), torch.tensor([[1]]), size=(31, 31))
        assert int(erased.sum()) == min(holes, 31)
    whole = erased_pixels(diagonal, diagonal, torch.tensor([[31]]), torch.tensor([[62]]), size=(31, 31))
    assert bool(whole.all())


@pytest.mark.parametrize(("holes", "length"), [(0.0, 8.0), (3.0, 0.0)])
def test_no_holes_or_no_length_is_no_change(holes: float, length: float) -> None:
    inputs = images(4, 1, 8, 8)
    drawn = sample(cutout_holes=[holes], cutout_length=[length])
    assert torch.equal(seeded(Cutout(max_holes=3), inputs, drawn), inputs)


def test_cutout_centres_are_uniform() -> None:
    drawn = sample(cutout_holes=[1.0], cutout_length=[1.0])
    erased = seeded(Cutout(max_holes=1), torch.ones(30_000, 3, 5), drawn) == 0
    # Each of 15 pixels is hit 2,000 times, with a standard deviation of 43.
    assert torch.allclose(erased.sum(0).double(), torch.tensor(2000.0).double(), atol=200, rtol=0)


def test_one_channel_loses_what_the_others_lose() -> None:
    drawn = sample(cutout_holes=[2.0], cutout_length=[3.0])
    erased = seeded(Cutout(max_holes=2), images(5, 3, 8, 8), drawn) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    assert torch.equal(erased[:, 0], erased[:, 2])
    assert bool(erased.any())


@pytest.mark.parametrize("max_holes", [0, -1, 32])
def test_cutout_refuses_max_holes_out_of_range(max_holes: int) -> None:
    with pytest.raises(ValueError, match="max_holes"):
        Cutout(max_holes=max_holes)


def test_cutout_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match=r"\(4, 9\)"):
        Cutout(max_holes=1)(images(4, 9), sample(cutout_holes=[1.0], cutout_length=[1.0]))


# InputDropout


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


# InputScale


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


# All of them


@each
@each_dtype
def test_shared_value_is_that_value_for_each(
    augment: Augmentation, values: tuple[float, ...], dtype: torch.dtype
) -> None:
    inputs = images(6, 2, 7, 7, dtype=dtype)
    named = dict(zip(augment.names, values, strict=True))
    shared = seeded(augment, inputs, sample(**{name: [value] for name, value in named.items()}))
    per_example = seeded(augment, inputs, sample(**{name: [value] * 6 for name, value in named.items()}))
    assert torch.equal(shared, per_example)
    assert not torch.equal(shared, inputs)


@each
def test_example_depends_on_its_own_values_only(augment: Augmentation, values: tuple[float, ...]) -> None:
    """The noise is the same whatever the values, so changing one example's leaves the others bit for bit."""
    inputs = images(5, 1, 7, 7)
    named = dict(zip(augment.names, values, strict=True))
    changed = {name: [value, value, 0.0, value, value] for name, value in named.items()}
    before = seeded(augment, inputs, sample(**{name: [value] for name, value in named.items()}))
    after = seeded(augment, inputs, sample(**changed))
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(before[others], after[others])
    assert torch.equal(after[2], inputs[2])


@each
def test_seed_decides(augment: Augmentation, values: tuple[float, ...]) -> None:
    inputs = images(6, 1, 7, 7)
    drawn = sample(**{name: [value] for name, value in zip(augment.names, values, strict=True)})
    assert torch.equal(seeded(augment, inputs, drawn, 1), seeded(augment, inputs, drawn, 1))
    assert not torch.equal(seeded(augment, inputs, drawn, 1), seeded(augment, inputs, drawn, 2))


@each
def test_inputs_are_left_alone_and_types_mix(augment: Augmentation, values: tuple[float, ...]) -> None:
    """Float64 hyperparameters do not promote float32 inputs, and half precision stays half."""
    for dtype in (torch.float32, torch.bfloat16):
        inputs = images(4, 1, 7, 7).to(dtype)
        original = inputs.clone()
        named = zip(augment.names, values, strict=True)
        doubles = Sample({name: torch.full((4,), value, dtype=torch.float64) for name, value in named})
        assert seeded(augment, inputs, doubles).dtype == dtype
        assert torch.equal(inputs, original)


@each
@pytest.mark.parametrize(("batch", "rows"), [(4, 3), (1, 4)])
def test_values_for_another_batch_are_refused(
    augment: Augmentation, values: tuple[float, ...], batch: int, rows: int
) -> None:
    drawn = sample(**{name: [value] * rows for name, value in zip(augment.names, values, strict=True)})
    with pytest.raises(ValueError, match=f"{augment.names[0]} has shape"):
        augment(images(batch, 1, 5, 5), drawn)


@pytest.mark.parametrize("augment", [InputDropout("x"), InputScale("x")])
def test_integer_inputs_are_refused(augment: Augmentation) -> None:
    with pytest.raises(ValueError, match="floating-point"):
        augment(torch.ones(2, 3, dtype=torch.uint8), sample(x=[0.1]))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Cutout("n", "side", max_holes=2), ("n", "side")),
        (lambda: InputDropout("p"), ("p",)),
        (lambda: InputScale("s"), ("s",)),
    ],
)
def test_names_are_those_given(make: Callable[[], Augmentation], names: tuple[str, ...]) -> None:
    assert make().names == names
