"""Transposed convolutions: the contract of all response layers, and their geometries against plain layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.nn import ResponseConvTranspose, ResponseSize, Slot
from tune_stn.space.sample import Sample
from tune_stn.testing import ResponseLayerContract

Conv = type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]
GEOMETRIES: list[tuple[Conv, dict[str, Any], tuple[int, ...]]] = [
    (nn.ConvTranspose1d, {"kernel_size": 3, "stride": 2}, (4,)),
    (nn.ConvTranspose1d, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, (4,)),
    (nn.ConvTranspose2d, {"kernel_size": (3, 1), "stride": (1, 2), "padding": (1, 0), "bias": False}, (3, 2)),
    (nn.ConvTranspose2d, {"kernel_size": 2, "groups": 2, "dilation": 2}, (3, 2)),
    (nn.ConvTranspose2d, {"kernel_size": 2, "groups": 4, "stride": 3, "output_padding": (2, 0)}, (2, 2)),
    (nn.ConvTranspose3d, {"kernel_size": 2, "padding": 1, "stride": (1, 2, 1)}, (2, 2, 3)),
]


@pytest.mark.parametrize(("kind", "settings", "extent"), GEOMETRIES, ids=str)
def test_geometry_is_that_of_the_plain_layer(kind: Conv, settings: dict[str, Any], extent: tuple[int, ...]) -> None:
    """Each unit's weights are formed one by one, as torch lays them out: `weight[in, out within its group]`."""
    sizes: tuple[ResponseSize, ...] = ("full", 2, "gate")
    for size, mode in itertools.product(sizes, ("none", "merged", "per example")):
        torch.manual_seed(0)
        base = kind(4, 8, **settings, dtype=torch.float64)
        layer = ResponseConvTranspose(base, 2, size, Slot(), torch.Generator().manual_seed(1))
        nn.init.normal_(layer.gate)
        x = torch.randn(3, 4, *extent, dtype=torch.float64)
        rows = torch.randn(1 if mode == "merged" else 3, 2, dtype=torch.float64)
        with torch.no_grad(), layer.slot.using(Sample({}, None if mode == "none" else rows)):
            outputs = layer(x)
        plain = kind(4, 8, **settings, dtype=torch.float64)
        per_group, inputs_of_group = 8 // base.groups, 4 // base.groups
        for i in range(3):
            gates = layer.gate @ (torch.zeros_like(rows[0]) if mode == "none" else rows[i % len(rows)])
            with torch.no_grad():
                weight = layer.weight.clone()
                for unit in range(8):
                    group, place = divmod(unit, per_group)
                    where = slice(group * inputs_of_group, (group + 1) * inputs_of_group), place
                    if size == 2:
                        response = torch.einsum("r,ri...->i...", layer.response_up[unit], layer.response_down)
                    else:
                        response = (layer.weight if size == "gate" else layer.response_weight)[where]
                    weight[where] += gates[unit] * response
                plain.weight.copy_(weight)
                if layer.bias is not None and plain.bias is not None:
                    offset = gates[8:] if size == "gate" else gates[8:] * layer.response_bias
                    plain.bias.copy_(layer.bias + offset)
                torch.testing.assert_close(outputs[i : i + 1], plain(x[i : i + 1]), rtol=1e-10, atol=1e-11)


class TestConvTranspose(ResponseLayerContract):
    converted = ResponseConvTranspose

    @pytest.fixture(autouse=True, params=[1, 2], ids=["", "groups"])
    def groups(self, request: pytest.FixtureRequest) -> None:
        self.in_groups: int = request.param

    def base(self) -> nn.Module:
        return nn.ConvTranspose2d(2, 4, 2, stride=2, output_padding=(1, 0), groups=self.in_groups)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 2, 3, 2)


class TestConvTransposeToASize(ResponseLayerContract):
    """Whoever asks for a size gets it, whichever way the layer is evaluated."""

    converted = ResponseConvTranspose
    sizes = (2, "gate")

    def base(self) -> nn.Module:
        return nn.ConvTranspose1d(2, 3, 3, stride=3, padding=1, bias=False)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 2, 4)

    def call(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        outputs: Tensor = layer(inputs, output_size=(12,))
        assert outputs.shape[-1] == 12
        assert layer.output_padding == (0,)
        return outputs

    def test_a_size_out_of_reach_is_refused_as_torch_does(self) -> None:
        case = self.case("gate")
        with pytest.raises(ValueError, match="requested an output size of"), case.layer.slot.using(Sample({})):  # type: ignore
            case.layer(case.inputs, output_size=(99,))


def test_low_rank_response_is_a_thin_transposed_convolution_and_a_mixture() -> None:
    torch.manual_seed(0)
    base = nn.ConvTranspose2d(3, 6, 3, stride=2, bias=False)
    layer = ResponseConvTranspose(base, 1, 2, Slot(), torch.Generator().manual_seed(1))
    assert layer.response_down.shape == (2, 3, 3, 3)
    nn.init.ones_(layer.gate)
    x = torch.randn(2, 3, 4, 4)
    thin = F.conv_transpose2d(x, layer.response_down.transpose(0, 1), stride=2)
    expected = base(x) + torch.einsum("or,brhw->bohw", layer.response_up, thin)
    with layer.slot.using(Sample({}, torch.ones(2, 1))):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_response_weight_is_drawn_as_torch_draws_the_base() -> None:
    base = nn.ConvTranspose2d(40, 30, 3)
    layer = ResponseConvTranspose(base, 2, "full", Slot(), torch.Generator().manual_seed(1))
    found, expected = layer.response_weight.detach(), base.weight.detach()
    assert float(found.std()) == pytest.approx(float(expected.std()), rel=0.05)
    assert float(found.abs().max()) == pytest.approx(float(expected.abs().max()), rel=0.05)
