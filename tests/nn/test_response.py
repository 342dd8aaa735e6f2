"""Linear layers and convolutions: the contract of all response layers, and each form against its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn import ResponseLayer, ResponseLinear, Slot
from tune_stn.nn.response import ResponseSize, check_response_size, size_in_words
from tune_stn.nn.self_tuning import RESPONSES
from tune_stn.space.sample import Sample
from tune_stn.testing import ResponseLayerContract

BATCH, INPUTS = 3, 2


@dataclass(frozen=True)
class Family:
    make: Callable[..., nn.Module]
    shape: tuple[int, ...]


FAMILIES: dict[str, Family] = {
    "linear": Family(lambda **kw: nn.Linear(3, 4, **kw), (3,)),
    "linear on sequences": Family(lambda **kw: nn.Linear(3, 4, **kw), (2, 5, 3)),
    "conv1d": Family(lambda **kw: nn.Conv1d(2, 3, 3, stride=2, padding=1, **kw), (2, 6)),
    "conv2d": Family(lambda **kw: nn.Conv2d(2, 3, 2, **kw), (2, 3, 4)),
    "conv2d in groups": Family(lambda **kw: nn.Conv2d(4, 6, 2, groups=2, dilation=2, **kw), (4, 4, 3)),
    "conv2d depthwise": Family(lambda **kw: nn.Conv2d(3, 3, 3, groups=3, padding="same", **kw), (3, 3, 3)),
    "conv2d circular": Family(lambda **kw: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", **kw), (2, 3, 4)),
    "conv3d": Family(lambda **kw: nn.Conv3d(1, 2, 2, padding=1, **kw), (1, 2, 2, 2)),
}
SIZES: list[ResponseSize] = ["full", 1, 3, "gate"]

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
each_size = pytest.mark.parametrize("size", SIZES)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


class TestFamilies(ResponseLayerContract):
    @pytest.fixture(autouse=True, params=["linear on sequences", "conv1d", "conv2d in groups", "conv2d circular"])
    def family(self, request: pytest.FixtureRequest) -> None:
        self.made = FAMILIES[request.param]
        self.converted = RESPONSES[type(self.made.make())]  # type: ignore[misc]

    def base(self) -> nn.Module:
        return self.made.make()

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, *self.made.shape)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


@dataclass
class Case:
    """One layer with a response that is not zero, and what it takes."""

    base: nn.Module
    layer: ResponseLayer
    inputs: Tensor
    response_input: Tensor

    def __call__(
        self,
        response_input: Tensor | None,
        *,
        linearise: bool = False,
        inputs: Tensor | None = None,
        rates: tuple[float, ...] = (0.5,),
    ) -> Tensor:
        torch.manual_seed(5)
        values = {"rate": torch.tensor(rates)}
        with self.layer.slot.using(Sample(values, response_input, linearise)):
            outputs: Tensor = self.layer(self.inputs if inputs is None else inputs)
        return outputs

    def linearised(self, response_input: Tensor, tangent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inputs = self.inputs
        with forward_ad.dual_level():
            if tangent is not None:
                inputs = forward_ad.make_dual(inputs, tangent)  # type: ignore[no-untyped-call]
            dual = self(response_input, linearise=True, inputs=inputs)
            value, derivative = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
        return value.detach(), derivative.detach()

    def mask(self) -> Tensor:
        """The one that the next call will draw; ones where nothing is dropped."""
        torch.manual_seed(5)
        with self.layer.slot.using(Sample({"rate": torch.tensor([0.5])})):
            mask = self.layer.weight_mask(self.layer.weight)
        return torch.ones_like(self.layer.weight) if mask is None else mask

    def merged(self, row: Tensor) -> nn.Module:
        """The plain layer of one example, straight from the definition in the module's docstring."""
        layer, base = self.layer, self.base
        bias = layer.bias
        out = layer.weight.shape[0]
        gates = layer.gate @ row
        unit = gates[:out]
        if layer.size == "full":
            matrix: Tensor = layer.response_weight
        elif layer.size == "gate":
            matrix = layer.weight
        else:
            matrix = torch.einsum("or,r...->o...", layer.response_up, layer.response_down)
        plain = type(base).__new__(type(base))
        plain.__dict__ = {**base.__dict__, "_parameters": dict(base._parameters)}
        weight = (layer.weight + unit.view(-1, *[1] * (layer.weight.dim() - 1)) * matrix) * self.mask()
        plain._parameters["weight"] = nn.Parameter(weight.detach())
        if bias is not None:
            offset = gates[out:] if layer.size == "gate" else gates[out:] * layer.response_bias
            plain._parameters["bias"] = nn.Parameter((bias + offset).detach())
        return plain


def make_case(
    family: Family, size: ResponseSize, bias: bool = True, dtype: torch.dtype = torch.float64, drop: bool = False
) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = family.make(bias=bias).to(dtype)
    layer = RESPONSES[type(base)](base, INPUTS, size, Slot(), seeded(1))
    assert isinstance(layer, ResponseLayer)
    layer.weight_rate = "rate" if drop else None
    with torch.no_grad():
        layer.gate.copy_(noise(*layer.gate.shape, seed=2) * 0.5)
    inputs = noise(BATCH, *family.shape, seed=3, dtype=dtype)
    return Case(base, layer, inputs, noise(BATCH, INPUTS, seed=4, dtype=dtype))


@pytest.mark.slow
@each_family
@each_size
@with_and_without_bias
@pytest.mark.parametrize("drop", [False, True], ids=["", "DropConnect"])
def test_each_example_goes_through_its_own_plain_layer(
    family: Family, size: ResponseSize, bias: bool, drop: bool
) -> None:
    """In all forms: the outputs are affine in h, so the tangent is a difference of outputs exactly."""
    case = make_case(family, size, bias, drop=drop)
    zero = torch.zeros_like(case.response_input[0])
    with torch.no_grad():
        expected = torch.cat(
            [case.merged(row)(example[None]) for row, example in zip(case.response_input, case.inputs, strict=True)]
        )
        base = case.merged(zero)(case.inputs)
        shared = case.merged(case.response_input[1])(case.inputs)
        incoming = noise(*case.inputs.shape, seed=6)
        through_base = case.merged(zero)(case.inputs + incoming) - base
    outputs = case(case.response_input)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(case(case.response_input[1:2]), shared, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(case(None), base, rtol=1e-12, atol=1e-13)
    for tangent in (None, incoming):
        value, derivative = case.linearised(case.response_input, tangent)
        torch.testing.assert_close(value, base, rtol=1e-12, atol=1e-13)
        slope = expected - base + (0 if tangent is None else through_base)
        torch.testing.assert_close(derivative, slope, rtol=1e-9, atol=1e-10)
    assert float((outputs - base).detach().abs().max()) > 1e-2  # the response is at work
    assert not drop or not torch.allclose(base, case.base(case.inputs))  # and so is the mask


@each_family
@each_size
@with_and_without_bias
def test_no_response_input_is_exactly_the_base(family: Family, size: ResponseSize, bias: bool) -> None:
    case = make_case(family, size, bias)
    assert torch.equal(case(None), case.base(case.inputs))


@each_family
@each_size
def test_float32_is_float64_rounded(family: Family, size: ResponseSize) -> None:
    """Also after `.to(dtype)`, and with a response input of another type than the layer."""
    case = make_case(family, size)
    exact = case(case.response_input)
    case.layer.float()
    outputs = case(case.response_input.float(), inputs=case.inputs.float())
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, exact.float(), rtol=1e-4, atol=1e-5)
    case.layer.double()
    torch.testing.assert_close(case(case.response_input.float()), exact, rtol=1e-5, atol=1e-6)


@each_family
@each_size
def test_under_autocast_the_outputs_are_of_the_type_of_the_plain_layer(family: Family, size: ResponseSize) -> None:
    """Were a gate to widen them, the network would carry feature maps of twice the size."""
    case = make_case(family, size, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for rows in (None, case.response_input[:1], case.response_input):
            assert case(rows).dtype == torch.bfloat16
        assert {part.dtype for part in case.linearised(case.response_input)} == {torch.bfloat16}


@each_family
def test_it_moves_to_another_device(family: Family) -> None:
    """Meta is a device that every machine has; all parameters go along and the shapes stay."""
    case = make_case(family, "full")
    expected = case(case.response_input).shape
    case.layer.to("meta")
    outputs = case(case.response_input.to("meta"), inputs=case.inputs.to("meta"))
    assert outputs.device.type == "meta"
    assert outputs.shape == expected


@pytest.mark.parametrize("name", ["conv2d", "conv2d circular"])
@each_size
@pytest.mark.parametrize("drop", [False, True], ids=["", "DropConnect"])
def test_channels_last_stays_so(name: str, size: ResponseSize, drop: bool) -> None:
    """Outputs, and the masks and response weights that meet such inputs."""
    case = make_case(FAMILIES[name], size, drop=drop)
    case.layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = case.inputs.to(memory_format=torch.channels_last)
    for rows in (None, case.response_input[:1], case.response_input):
        assert case(rows, inputs=inputs).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["per example", "merged"])
@each_size
def test_all_entries_of_the_jacobian(size: ResponseSize, mode: str) -> None:
    """The contract compares projections; here each entry, for the smallest family."""
    case = make_case(FAMILIES["conv1d"], size)
    rows = case.response_input[:1] if mode == "merged" else case.response_input
    arguments = [case.inputs.requires_grad_(), rows.clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, h: case(h, inputs=x), arguments)


@pytest.mark.parametrize("size", ["full", 4, 64])
def test_response_weight_has_the_variance_of_the_base_weight(size: ResponseSize) -> None:
    """Uniform in ±1/sqrt(fan_in), and products of factors have the same variance, 1/(3 fan_in)."""
    layer = ResponseLinear(nn.Linear(300, 400), INPUTS, size, Slot(), seeded(0))
    assert float(layer.response_matrix().detach().var()) == pytest.approx(1 / 900, rel=0.1)
    assert float(layer.response_bias.detach().abs().max()) <= 300**-0.5


def test_parameters_of_each_size() -> None:
    for size, expected in {"full": 3, 2: 4, "gate": 1, None: 0}.items():
        layer = ResponseLinear(nn.Linear(3, 4), INPUTS, size, Slot(), seeded(0))  # type: ignore[arg-type]
        assert len(list(layer.response_parameters())) == expected
        assert f"response={size_in_words(layer.size)}" in repr(layer)


# DropConnect ------------------------------------------------------------------------------------------------------


def test_weights_are_dropped_at_the_rate_and_the_others_make_up_for_it() -> None:
    layer = ResponseLinear(nn.Linear(200, 300, bias=False), INPUTS, None, Slot(), seeded(0))
    layer.weight_rate = "rate"
    nn.init.ones_(layer.weight)

    def effective(rate: float) -> Tensor:
        with layer.slot.using(Sample({"rate": torch.tensor([rate])})):
            weight: Tensor = layer(torch.eye(200))
        return weight.detach()

    for asked, rate in ((0.0, 0.0), (0.3, 0.3), (1.0, 0.95)):
        weight = effective(asked)
        kept = weight[weight != 0]
        assert kept.numel() / weight.numel() == pytest.approx(1 - rate, abs=0.01)
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
    assert not torch.equal(effective(0.3), effective(0.3))  # drawn afresh
    layer.eval()
    assert bool(effective(0.9).eq(1).all())


@each_family
@pytest.mark.parametrize("size", ["full", 2, "gate"])
def test_dropped_weights_have_no_gradient(family: Family, size: ResponseSize) -> None:
    case = make_case(family, size, drop=True)
    dropped = case.mask().eq(0)
    assert bool(dropped.any())
    wanted = [case.layer.weight, *([case.layer.response_weight] if size == "full" else [])]
    for rows in (case.response_input, case.response_input[:1]):
        for gradient in torch.autograd.grad(case(rows).square().sum(), wanted):
            assert not gradient[dropped].any()


def test_a_rate_for_each_example_is_refused() -> None:
    case = make_case(FAMILIES["linear"], "gate", drop=True)
    with pytest.raises(
        ValueError, match="ResponseLinear drops weights at the rate 'rate', of which there are 3"
    ) as caught:
        case(case.response_input, rates=(0.1, 0.2, 0.3))
    assert "SearchSpace(..., per_batch=['rate'])" in str(caught.value)
    case.layer.eval()
    case(case.response_input, rates=(0.1, 0.2, 0.3))


# Errors -----------------------------------------------------------------------------------------------------------


def test_a_layer_outside_a_sample_says_what_to_do() -> None:
    case = make_case(FAMILIES["linear"], "full")
    with pytest.raises(RuntimeError, match=r"call the network itself"):
        case.layer(case.inputs)


@pytest.mark.parametrize(("given", "size"), [("full", "full"), ("gate", "gate"), (1, 1), (64, 64), ("8", 8)])
def test_sizes_accepted(given: object, size: object) -> None:
    assert check_response_size(given) == size


@pytest.mark.parametrize("given", [0, -1, 1.5, True, "auto", "rank 8", "", None, "0", ["full"]])
def test_sizes_refused_with_those_accepted(given: object) -> None:
    with pytest.raises(ValueError, match="accepted are 'full', 'gate' and a rank of 1 or more") as caught:
        check_response_size(given)
    assert repr(given) in str(caught.value) or given == "0"
