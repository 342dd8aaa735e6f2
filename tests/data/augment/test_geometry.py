"""Affine maps against pixels looked up one at a time through the inverse of the map; flips."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tune_stn.data.augment import RandomAffine, RandomFlip
from tune_stn.data.augment.geometry import moved
from tune_stn.space.sample import Sample

Padding = Literal["zeros", "border"]


def slow_move(
    image: Tensor, right: float, down: float, rotation: float, scale: float, shear: float, padding: Padding
) -> Tensor:
    """One image; the map is written forwards, in pixels around the centre, and inverted as a matrix."""
    _, height, width = image.shape
    angle, slope = math.radians(rotation), math.tan(math.radians(shear))
    sheared = torch.tensor([[1, slope], [0, 1]], dtype=torch.float64)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    inverse = torch.linalg.inv(turn @ (scale * sheared))
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            there = torch.tensor(
                [x - (width - 1) / 2 - right * width, y - (height - 1) / 2 - down * height], dtype=torch.float64
            )
            from_x, from_y = (inverse @ there).tolist()
            result[:, y, x] = pixel_at(image, from_x + (width - 1) / 2, from_y + (height - 1) / 2, padding)
    return result


def pixel_at(image: Tensor, x: float, y: float, padding: Padding) -> Tensor:
    """Bilinear interpolation between the four pixels around a point."""
    _, height, width = image.shape
    if padding == "border":
        x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = math.floor(x), math.floor(y)
    value = torch.zeros(image.shape[0], dtype=image.dtype)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            value += (1 - abs(x - column)) * (1 - abs(y - row)) * image[:, row, column]
    return value


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)) + 0.5


@settings(max_examples=30, deadline=None)
@given(data=st.data(), padding=st.sampled_from(["zeros", "border"]))
def test_move_is_the_slow_move(data: st.DataObject, padding: Padding) -> None:
    batch, channels, height, width = (data.draw(st.integers(1, most)) for most in (3, 2, 6, 6))
    inputs = images(batch, channels, height, width)

    def drawn(low: float, high: float) -> list[float]:
        return data.draw(st.lists(st.floats(low, high, width=32), min_size=batch, max_size=batch))

    right, down, rotation = drawn(-1, 1), drawn(-1, 1), drawn(-180, 180)
    scale, shear = drawn(0.5, 2), drawn(-60, 60)
    found = moved(
        inputs,
        translation=torch.tensor([right, down]),
        rotation=torch.tensor(rotation),
        scale=torch.tensor(scale),
        shear=torch.tensor(shear),
        padding=padding,
    )
    for i in range(batch):
        expected = slow_move(inputs[i], right[i], down[i], rotation[i], scale[i], shear[i], padding)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=5e-5)


def test_maps_are_drawn_as_the_values_say() -> None:
    values = {
        "translation": [0.0, 0.3, 0.1, 0.0],
        "rotation": [0.0, 0.0, 90.0, 180.0],
        "scale": [0.0, 1.0, 0.2, 0.0],
        "shear": [30.0, 0.0, 10.0, 0.0],
    }
    augment = RandomAffine(translation="translation", rotation="rotation", scale="scale", shear="shear")
    inputs = images(4, 2, 5, 6)
    torch.manual_seed(3)
    found = augment(inputs, Sample({name: torch.tensor(value) for name, value in values.items()}))
    torch.manual_seed(3)
    draws = (2 * torch.rand(5, 4) - 1).tolist()
    for i in range(4):
        expected = slow_move(
            inputs[i],
            values["translation"][i] * draws[0][i],
            values["translation"][i] * draws[1][i],
            values["rotation"][i] * draws[2][i],
            (1 + values["scale"][i]) ** draws[3][i],
            values["shear"][i] * draws[4][i],
            "zeros",
        )
        torch.testing.assert_close(found[i], expected, rtol=0, atol=5e-5)


PICTURE = ["#...", "#...", "##..", "...."]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"right": 0.25}, [".#..", ".#..", ".##.", "...."]),
        ({"down": 0.5}, ["....", "....", "#...", "#..."]),
        ({"rotation": 90.0}, [".###", ".#..", "....", "...."]),
        ({"rotation": 180.0}, ["....", "..##", "...#", "...#"]),
        ({"shear": math.degrees(math.atan(2.0))}, ["....", "....", ".##.", "...."]),  # by -3, -1, 1 and 3
    ],
)
def test_by_eye(change: dict[str, float], expected: list[str]) -> None:
    """Whole pixels go to whole pixels."""
    picture = torch.tensor([[pixel == "#" for pixel in row] for row in PICTURE]).float()[None, None]
    given = {name: torch.tensor([change.get(name, 0.0)]) for name in ("rotation", "shear")}
    translation = torch.tensor([[change.get("right", 0.0)], [change.get("down", 0.0)]])
    found = moved(picture, translation=translation, scale=torch.ones(1), padding="zeros", **given)
    assert ["".join("#" if pixel > 0.5 else "." for pixel in row) for row in found[0, 0].tolist()] == expected
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-5)


def test_border_is_the_nearest_pixel() -> None:
    inputs = images(1, 1, 3, 4)
    half = torch.tensor([[0.5], [0.0]])
    still = {"rotation": torch.zeros(1), "scale": torch.ones(1), "shear": torch.zeros(1)}
    found = moved(inputs, translation=half, padding="border", **still)
    expected = inputs[..., [0, 0, 0, 1]]
    torch.testing.assert_close(found, expected)


def test_another_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding='reflection': accepted are 'zeros' and 'border'"):
        RandomAffine(rotation="rotation", padding="reflection")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 5, 5), (4, 1, 2, 5, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs \(batch, channels, height, width\), not \(4,"):
        RandomAffine(rotation="rotation")(torch.zeros(shape), Sample({"rotation": torch.zeros(1)}))


def test_each_image_is_mirrored_or_not() -> None:
    inputs = images(400, 2, 3)
    torch.manual_seed(0)
    found = RandomFlip()(inputs, Sample({}))
    mirrored = (found == inputs.flip(-1)).all(-1).all(-1)
    assert torch.equal(found[~mirrored], inputs[~mirrored])
    assert int(mirrored.sum()) == pytest.approx(200, abs=50)  # five standard deviations
    torch.manual_seed(0)
    assert torch.equal(mirrored, torch.rand(400) < 0.5)
