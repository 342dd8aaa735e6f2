"""Normalisation of stored bytes."""

from __future__ import annotations

import pytest
import torch

from tune_stn.data.normalise import Normalise


@pytest.mark.parametrize("channels", [1, 3])
def test_every_byte_of_every_channel_against_the_formula(channels: int) -> None:
    mean, std = torch.linspace(0.2, 0.6, channels), torch.linspace(0.3, 0.2, channels)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, channels, 1, 1)
    found = Normalise(tuple(mean.tolist()), tuple(std.tolist()))(pixels)
    expected = (pixels.double() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
