"""All geometries of a convolution against plain layers; the contract of all families is in test_response."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune_stn.nn import ResponseConv, ResponseSize, Slot
from tune_stn.space.sample import Sample

Conv = type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]
GEOMETRIES: list[tuple[Conv, dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv1d, {"kernel_size": 3, "stride": 2}, (7,)),
    (nn.Conv1d, {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "replicate"}, (7,)),
    (nn.Conv1d, {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"}, (7,)),
    (nn.Conv2d, {"kernel_size": (3, 1), "stride": (1, 2), "padding": (1, 0)}, (5, 4)),
    (nn.Conv2d, {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"}, (5, 4)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2}, (5, 4)),
    (nn.Conv2d, {"kernel_size": (3, 5), "padding": "same", "dilation": (2, 1)}, (5, 6)),
    (nn.Conv2d, {"kernel_size": 3, "padding": "same", "padding_mode": "circular"}, (5, 6)),
    (nn.Conv2d, {"kernel_size": 2, "padding": "valid"}, (3, 4)),
    (nn.Conv2d, {"kernel_size": 2, "groups": 2, "dilation": 2}, (4, 4)),
    (nn.Conv2d, {"kernel_size": 1, "groups": 4, "padding": 1, "padding_mode": "replicate"}, (3, 3)),
    (nn.Conv3d, {"kernel_size": 2, "padding": 1, "stride": (1, 2, 1)}, (2, 3, 2)),
    (nn.Conv3d, {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "groups": 2}, (3, 3, 3)),
]


@pytest.mark.parametrize(("kind", "settings", "extent"), GEOMETRIES, ids=str)
def test_geometry_is_that_of_the_plain_layer(kind: Conv, settings: dict[str, Any], extent: tuple[int, ...]) -> None:
    sizes: tuple[ResponseSize, ...] = ("full", 2, "gate")
    for size, mode in itertools.product(sizes, ("none", "merged", "per example")):
        torch.manual_seed(0)
        base = kind(4, 8, **settings, dtype=torch.float64)
        layer = ResponseConv(base, 2, size, Slot(), torch.Generator().manual_seed(1))
        nn.init.normal_(layer.gate)
        x = torch.randn(3, 4, *extent, dtype=torch.float64)
        rows = torch.randn(1 if mode == "merged" else 3, 2, dtype=torch.float64)
        with torch.no_grad(), layer.slot.using(Sample({}, None if mode == "none" else rows)):
            outputs = layer(x)
        plain = kind(4, 8, **settings, dtype=torch.float64)
        assert layer.bias is not None
        for i in range(3):
            gates = layer.gate @ (torch.zeros_like(rows[0]) if mode == "none" else rows[i % len(rows)])
            offset = gates[8:] if size == "gate" else gates[8:] * layer.response_bias
            unit = gates[:8].view(-1, *[1] * (layer.weight.dim() - 1))
            with torch.no_grad():
                plain.weight.copy_(layer.weight + unit * layer.response_matrix())
                plain.bias.copy_(layer.bias + offset)  # type: ignore[union-attr]
                torch.testing.assert_close(outputs[i : i + 1], plain(x[i : i + 1]), rtol=1e-10, atol=1e-11)


def test_low_rank_response_is_a_thin_convolution_and_a_mixture() -> None:
    """V x = A (B * x): `rank` channels first, mixed to all outputs after."""
    torch.manual_seed(0)
    base = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
    layer = ResponseConv(base, 1, 2, Slot(), torch.Generator().manual_seed(1))
    assert layer.response_down.shape == (2, 3, 3, 3)
    assert layer.response_up.shape == (6, 2)
    nn.init.ones_(layer.gate)
    x = torch.randn(2, 3, 6, 6)
    thin = F.conv2d(x, layer.response_down, stride=2, padding=1)
    expected = base(x) + torch.einsum("or,brhw->bohw", layer.response_up, thin)
    with layer.slot.using(Sample({}, torch.ones(2, 1))):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_what_a_users_forward_reads_of_the_base_is_there() -> None:
    base = nn.Conv2d(4, 8, (3, 5), stride=2, padding=1, dilation=2, groups=2, padding_mode="circular")
    layer = ResponseConv(base, 1, "gate", Slot(), torch.Generator())
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(base, name)
    assert layer.bias is base.bias
