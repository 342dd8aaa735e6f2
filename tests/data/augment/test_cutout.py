"""Cutout against squares erased one pixel at a time, from draws of the same seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tune_stn.data.augment import Cutout
from tune_stn.data.augment.cutout import erased_pixels
from tune_stn.space.sample import Sample


def sample(**values: list[float]) -> Sample:
    return Sample({name: torch.tensor(value) for name, value in values.items()})


def seeded(augment: Cutout, inputs: Tensor, drawn: Sample, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return augment(inputs, drawn)


def images(*shape: int) -> Tensor:
    """Positive everywhere, so that a zero is an erased element."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)) + 0.5


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
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.uint8]))
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
