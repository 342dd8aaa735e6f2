"""Colour jitter against the four changes made one after the other to one pixel after the other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tune_stn.data.augment import ColourJitter
from tune_stn.data.augment.colour import jittered
from tune_stn.space.sample import Sample

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NAMES = ("brightness", "contrast", "saturation", "hue")
ALL = ColourJitter(brightness="brightness", contrast="contrast", saturation="saturation", hue="hue")


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def luma(pixel: list[float]) -> float:
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2] if len(pixel) == 3 else pixel[0]


def turned(pixel: list[float], turn: float) -> list[float]:
    """A full turn is 1: to YIQ, around Y, and back."""
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64
    )
    y, i, q = (to_yiq @ torch.tensor(pixel, dtype=torch.float64)).tolist()
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    back = torch.tensor([y, cos * i - sin * q, sin * i + cos * q], dtype=torch.float64)
    return torch.linalg.inv(to_yiq).mv(back).tolist()  # type: ignore[no-any-return]


def slow_jitter(image: Tensor, brightness: float, contrast: float, saturation: float, turn: float) -> Tensor:
    """One image of pixels in [0, 1], shape (channels, height, width)."""
    pixels = [[brightness * value for value in pixel] for pixel in image.flatten(1).T.tolist()]
    middle = sum(luma(pixel) for pixel in pixels) / len(pixels)
    pixels = [[middle + contrast * (value - middle) for value in pixel] for pixel in pixels]
    pixels = [[luma(pixel) + saturation * (value - luma(pixel)) for value in pixel] for pixel in pixels]
    if len(image) == 3:
        pixels = [turned(pixel, turn) for pixel in pixels]
    clamped = [[min(max(value, 0.0), 1.0) for value in pixel] for pixel in pixels]
    return torch.tensor(clamped).T.view(image.shape)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), channels=st.sampled_from([1, 3]), normalised=st.booleans())
def test_jitter_is_the_slow_jitter(data: st.DataObject, channels: int, normalised: bool) -> None:
    batch, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 1000))
    pixels = torch.rand(batch, channels, 3, 2, generator=torch.Generator().manual_seed(seed))
    factor = st.floats(0, 2, width=32)
    factors = [data.draw(st.lists(factor, min_size=batch, max_size=batch)) for _ in range(3)]
    turns = data.draw(st.lists(st.floats(-0.5, 0.5, width=32), min_size=batch, max_size=batch))
    if channels == 1:
        factors[2], turns = [1.0] * batch, [0.0] * batch
    mean, std = (MEAN[:channels], STD[:channels]) if normalised else ((0.0,) * channels, (1.0,) * channels)
    found = jittered(
        normalise(pixels, mean, std),
        brightness=torch.tensor(factors[0]),
        contrast=torch.tensor(factors[1]),
        saturation=torch.tensor(factors[2]),
        turn=torch.tensor(turns),
        mean=mean,
        std=std,
    )
    expected = torch.stack([slow_jitter(pixels[i], *(f[i] for f in factors), turns[i]) for i in range(batch)])
    torch.testing.assert_close(found, normalise(expected, mean, std), rtol=0, atol=3e-5)


def test_factors_are_drawn_as_the_values_say() -> None:
    """Every image through the slow one, with the seed's draws, some strengths past 1."""
    strengths = {
        "brightness": [0.0, 0.3, 1.0, 2.0],
        "contrast": [0.2, 0.0, 1.5, 0.4],
        "saturation": [0.0, 0.0, 1.0, 3.0],
        "hue": [0.1, 0.0, 0.5, 0.25],
    }
    pixels = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(0)
    found = ALL(pixels, Sample({name: torch.tensor(values) for name, values in strengths.items()}))
    torch.manual_seed(0)
    draws = torch.rand(4, 4).tolist()
    for i in range(4):
        factors = []
        for name, draw in zip(NAMES[:3], draws, strict=False):
            low, high = max(0.0, 1 - strengths[name][i]), 1 + strengths[name][i]
            factors.append(low + (high - low) * draw[i])
        turn = strengths["hue"][i] * (2 * draws[3][i] - 1)
        torch.testing.assert_close(found[i], slow_jitter(pixels[i], *factors, turn), rtol=0, atol=3e-5)


def change(pixels: Tensor, **factors: float) -> Tensor:
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "turn": 0.0}
    given = {name: torch.tensor([value]) for name, value in (neutral | factors).items()}
    return jittered(pixels, **given, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_by_eye() -> None:
    """A grey, a red, a dark and a white pixel."""
    pixels = torch.tensor([[0.5, 0.5, 0.5], [0.8, 0.1, 0.1], [0.1, 0.1, 0.1], [1.0, 1.0, 1.0]]).T.view(1, 3, 2, 2)
    luma = (0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]).unsqueeze(1)
    exactly = {"rtol": 0.0, "atol": 1e-6}
    torch.testing.assert_close(change(pixels, brightness=0.5), pixels / 2, **exactly)
    torch.testing.assert_close(change(pixels, brightness=2.0), (2 * pixels).clamp(max=1), **exactly)
    torch.testing.assert_close(change(pixels, contrast=0.0), luma.mean().expand_as(pixels), **exactly)
    torch.testing.assert_close(change(pixels, saturation=0.0), luma.expand_as(pixels), **exactly)
    turned_red = change(pixels, turn=1 / 3)[0, :, 0, 1]
    assert int(turned_red.argmax()) != 0  # it is no longer red, and the grey ones are what they were
    torch.testing.assert_close(change(pixels, turn=1 / 3)[0, :, 1], pixels[0, :, 1], **exactly)
    torch.testing.assert_close(change(pixels, turn=0.25).clamp(0, 1), change(pixels, turn=0.25), rtol=0, atol=0)
    dull = 0.4 + 0.2 * pixels  # nothing to clamp
    torch.testing.assert_close(change(change(dull, turn=0.5), turn=0.5), dull, **exactly)


def test_nothing_leaves_the_range_of_pixels() -> None:
    pixels = torch.rand(200, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
    jitter = ColourJitter(**{name: name for name in NAMES}, mean=MEAN, std=STD)  # type: ignore[arg-type]
    found = jitter(normalise(pixels, MEAN, STD), Sample({name: torch.tensor([v]) for name, v in values.items()}))
    back = found * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert float(back.min()) == pytest.approx(0, abs=1e-6)
    assert float(back.max()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, r"mean=\(0.5, 0.5\).*accepted are three channels \(RGB\) or one"),
        ({"mean": (0.5,)}, "accepted are three channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (0.5,), "std": (0.2,), "hue": "hue"}, "grey images have no saturation and no hue"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColourJitter(brightness="brightness", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 1, 5, 5), (4, 5, 5, 3), (4, 3, 5), (4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs \(batch, 3, height, width\), as many channels as mean"):
        ColourJitter(hue="hue")(torch.zeros(shape), Sample({"hue": torch.zeros(1)}))
