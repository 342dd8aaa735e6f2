"""Attention against torch's own with the weights of each example, and its dropout against a slow reference."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from tune_stn.nn import Slot
from tune_stn.nn.attention import ResponseMultiheadAttention
from tune_stn.nn.dropout import MAX_RATE
from tune_stn.nn.response import ResponseSize
from tune_stn.space.sample import Sample
from tune_stn.testing import Case, ResponseLayerContract
from tune_stn.testing.case import assert_close

HEADS, WIDTH, TARGETS, SOURCES = 2, 4, 3, 5
each_size = pytest.mark.parametrize("size", ["full", 2, "gate"])


def second_derivatives() -> AbstractContextManager[Any]:
    """For a reference by double backward, of which fused kernels know nothing."""
    return sdpa_kernel(SDPBackend.MATH)


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def padding(batch: int, sources: int) -> Tensor:
    """Of another length for each example, none for the first."""
    return torch.arange(sources) >= sources - torch.arange(batch)[:, None] % 3


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(8))


@dataclass(frozen=True)
class Use:
    """Settings of the module, and a way to call it: arguments from batch size, targets and sources."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[[int, int, int], dict[str, Any]] = lambda n, t, s: {"need_weights": False}
    cross: bool = False

    def make(self) -> nn.MultiheadAttention:
        base = nn.MultiheadAttention(WIDTH, **{"num_heads": HEADS, "batch_first": True, **self.settings})
        for name, parameter in base.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)  # torch starts them at zero, where a mistake would not show
        return base

    def call(self, layer: nn.MultiheadAttention, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of inputs `(batch, TARGETS, WIDTH)`, from which cross-attention makes a longer memory; batch first."""
        query = key = value = inputs
        if self.cross:
            key = value = self.memory(inputs, layer.kdim)
            if layer.kdim != layer.vdim:
                value = self.memory(inputs, layer.vdim)
        arguments = self.arguments(inputs.shape[0], query.shape[1], key.shape[1])
        for name, mask in arguments.items():
            if isinstance(mask, Tensor) and mask.is_floating_point():
                arguments[name] = mask.to(inputs.dtype)
        if layer.batch_first:
            return layer(query, key, value, **arguments)  # type: ignore[no-any-return]
        outputs, weights = layer(*(x.transpose(0, 1) for x in (query, key, value)), **arguments)
        return outputs.transpose(0, 1), weights

    def memory(self, inputs: Tensor, features: int) -> Tensor:
        longer = torch.cat([inputs.sin(), inputs.cos()], 1)[:, :SOURCES]
        return longer @ torch.linspace(-9, 9, WIDTH * features).to(inputs).cos().view(WIDTH, features)


USES = {
    "self": Use(),
    "self, weights": Use(arguments=lambda n, t, s: {}),
    "self, weights of each head, no bias": Use({"bias": False}, lambda n, t, s: {"average_attn_weights": False}),
    "self, sequence first, one head": Use({"batch_first": False, "num_heads": 1}),
    "cross": Use(cross=True),
    "cross, other sizes": Use({"kdim": 3, "vdim": 5}, cross=True),
    "cross, other sizes, sequence first, no bias": Use(
        {"kdim": 3, "batch_first": False, "bias": False}, lambda n, t, s: {}, cross=True
    ),
    "causal": Use(arguments=lambda n, t, s: {"attn_mask": causal(t), "need_weights": False}),
    "causal, hint": Use(arguments=lambda n, t, s: {"attn_mask": causal(t), "need_weights": False, "is_causal": True}),
    "causal, hint, weights": Use(arguments=lambda n, t, s: {"attn_mask": causal(t), "is_causal": True}),
    "float mask, sequence first": Use(
        {"batch_first": False}, lambda n, t, s: {"attn_mask": noise(t, s), "need_weights": False}, cross=True
    ),
    "mask for each head": Use(
        arguments=lambda n, t, s: {
            "attn_mask": noise(n * HEADS, t, s).gt(0) & ~torch.eye(t, s).bool(),
            "need_weights": False,
        },
        cross=True,
    ),
    "float mask for each head, weights": Use(arguments=lambda n, t, s: {"attn_mask": noise(n * HEADS, t, s)}),
    "padding": Use(arguments=lambda n, t, s: {"key_padding_mask": padding(n, s), "need_weights": False}),
    "float padding, weights": Use({"batch_first": False}, lambda n, t, s: {"key_padding_mask": noise(n, s)}),
    "padding, causal hint": Use(
        arguments=lambda n, t, s: {
            "key_padding_mask": padding(n, s),
            "attn_mask": causal(t),
            "is_causal": True,
            "need_weights": False,
        }
    ),
    "added key and zero, masks": Use(
        {"add_bias_kv": True, "add_zero_attn": True},
        lambda n, t, s: {"key_padding_mask": padding(n, s), "attn_mask": noise(t, s).gt(0), "need_weights": False},
        cross=True,
    ),
    "added key, causal hint": Use(
        {"add_bias_kv": True}, lambda n, t, s: {"attn_mask": causal(t), "is_causal": True, "need_weights": False}
    ),
    "added zero, weights": Use({"add_zero_attn": True}, lambda n, t, s: {}),
}
each_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


class TestResponseMultiheadAttention(ResponseLayerContract):
    converted = ResponseMultiheadAttention

    @pytest.fixture(autouse=True, params=["self, weights of each head, no bias", "cross, other sizes"])
    def chosen(self, request: pytest.FixtureRequest) -> Iterator[None]:
        self.use = USES[request.param]
        with second_derivatives():
            yield

    def base(self) -> nn.Module:
        return self.use.make()

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, TARGETS, WIDTH)

    def call(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        assert isinstance(layer, nn.MultiheadAttention)
        return torch.cat([part.flatten(1) for part in self.use.call(layer, inputs) if part is not None], 1)

    def effective_weights(self, case: Case, row: Tensor) -> list[Tensor]:
        return [p.detach() for p in plain(case.layer, row[0]).parameters() if p.dim() >= 2]


def converted(
    base: nn.MultiheadAttention, size: ResponseSize | None = "gate", *, rate: str | None = None
) -> ResponseMultiheadAttention:
    """With a response that is not zero, in double precision."""
    layer = ResponseMultiheadAttention(base.double(), 2, size, Slot(), torch.Generator().manual_seed(1))
    layer.dropout_rate = rate
    for parameter in layer.parameters():
        if not any(parameter is p for p in base.parameters()):
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.5)
    return layer


def plain(layer: nn.Module, row: Tensor) -> nn.MultiheadAttention:
    """Torch's own module with the weights of one example, straight from the definition of a response."""
    assert isinstance(layer, ResponseMultiheadAttention)
    module = nn.MultiheadAttention(
        layer.embed_dim,
        layer.num_heads,
        batch_first=layer.batch_first,
        bias=layer.in_proj_bias is not None,
        add_bias_kv=layer.bias_k is not None,
        add_zero_attn=layer.add_zero_attn,
        kdim=layer.kdim,
        vdim=layer.vdim,
    ).double()
    own = {name: value for name, value in layer.state_dict().items() if name in module.state_dict()}
    module.load_state_dict(own)
    if layer.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    else:
        weights = list(module.in_proj_weight.chunk(3))
    weights.append(module.out_proj.weight)
    biases: list[Any] = [None] * 4
    if module.in_proj_bias is not None:
        biases = [*module.in_proj_bias.chunk(3), module.out_proj.bias]
    with torch.no_grad():
        for response, weight, bias in zip([*layer.projections, layer.out_proj], weights, biases, strict=True):
            gates = response.gate @ row
            if layer.size == "gate":
                change = weight.clone()
            elif layer.size == "full":
                change = response.response_weight
            else:
                change = response.response_up @ response.response_down
            weight += gates[:WIDTH, None] * change
            if bias is not None:
                bias += gates[WIDTH:] * (1 if layer.size == "gate" else response.response_bias)
    return module


# Against torch -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_use
@each_size
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_each_example_has_the_attention_of_torch_with_its_own_weights(
    use: Use, size: ResponseSize, training: bool
) -> None:
    """Masks and all; per example and merged; and the value of a linearised evaluation is torch's with base weights."""
    torch.manual_seed(0)
    base = use.make().train(training)
    untouched = copy.deepcopy(base).double()
    layer = converted(base, size)
    inputs, rows = torch.randn(4, TARGETS, WIDTH, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)

    def evaluate(sample: Sample) -> list[Tensor]:
        with layer.slot.using(sample), forward_ad.dual_level():
            return [
                forward_ad.unpack_dual(part).primal  # type: ignore[no-untyped-call]
                for part in use.call(layer, inputs)
                if part is not None
            ]

    expected = [[part for part in use.call(plain(layer, row), inputs) if part is not None] for row in rows]
    for i, of_row in enumerate(expected):
        for ours, theirs in zip(evaluate(Sample({}, rows)), of_row, strict=True):
            assert ours.shape == theirs.shape
            assert_close(ours[i], theirs[i])
    for ours, theirs in zip(evaluate(Sample({}, rows[:1])), expected[0], strict=True):
        assert_close(ours, theirs)
    at_zero = [part for part in use.call(untouched, inputs) if part is not None]
    for sample in (Sample({}), Sample({}, rows, linearise=True)):
        for ours, theirs in zip(evaluate(sample), at_zero, strict=True):
            assert_close(ours, theirs)


@each_use
def test_tangent_and_its_gradient_are_those_of_double_backward(use: Use) -> None:
    """Of outputs and weights alike, from tangents of the inputs and of the projections."""
    torch.manual_seed(0)
    layer = converted(use.make())
    parameters = [p for name, p in layer.named_parameters() if "gate" in name]
    for parameter in layer.parameters():
        parameter.requires_grad_(any(parameter is p for p in parameters))
    inputs, rows = torch.randn(4, TARGETS, WIDTH, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    incoming = torch.randn_like(inputs)

    def together(h: Tensor, x: Tensor, *, linearise: bool = False) -> Tensor:
        with layer.slot.using(Sample({}, h, linearise)):
            return torch.cat([part.flatten() for part in use.call(layer, x) if part is not None])

    def gradients(value: Tensor, tangent: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((value.detach() + tangent).sin().sum(), parameters))

    with forward_ad.dual_level():
        dual = together(rows, forward_ad.make_dual(inputs, incoming), linearise=True)  # type: ignore[no-untyped-call]
        value, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    ours = gradients(value, tangent)
    start, along = (torch.zeros_like(rows), inputs), (rows, incoming)
    with second_derivatives():
        value, expected = torch.autograd.functional.jvp(together, start, along, create_graph=True)  # type: ignore[no-untyped-call]
        theirs = gradients(value, expected)
    torch.testing.assert_close(tangent, expected, rtol=1e-10, atol=1e-10)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_without_a_response_in_eval_mode_it_is_the_very_module_of_torch() -> None:
    """Torch's inference kernel and its errors included: Delta-STN evaluates the base network itself."""
    torch.manual_seed(0)
    base = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    inputs = torch.randn(4, TARGETS, WIDTH)
    with torch.no_grad():
        expected = base(inputs, inputs, inputs)
        layer = ResponseMultiheadAttention(base, 2, "gate", Slot(), torch.Generator())
        assert isinstance(layer, nn.MultiheadAttention)
        with layer.slot.using(Sample({})):
            found = layer(inputs, inputs, inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("mask", [None, "2-D", "3-D"])
def test_unbatched_inputs_are_those_of_one_example(weights: bool, mask: str | None) -> None:
    torch.manual_seed(0)
    layer = converted(nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True))
    query, memory = torch.randn(TARGETS, WIDTH).double(), torch.randn(SOURCES, WIDTH).double()
    row = torch.randn(1, 2, dtype=torch.float64)
    shape = {None: None, "2-D": (TARGETS, SOURCES), "3-D": (HEADS, TARGETS, SOURCES)}[mask]
    arguments: dict[str, Any] = {
        "key_padding_mask": torch.arange(SOURCES) > 3,
        "attn_mask": None if shape is None else noise(*shape) > 0,
        "need_weights": weights,
    }
    with layer.slot.using(Sample({}, row)):
        found = layer(query, memory, memory, **arguments)
    for ours, theirs in zip(found, plain(layer, row[0])(query, memory, memory, **arguments), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.shape == theirs.shape
            assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("shapes", "arguments"),
    [
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"is_causal": True}),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"attn_mask": torch.zeros(5, 3)}),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"attn_mask": torch.zeros(1, 3, 5)}),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"attn_mask": torch.zeros(1, 1, 3, 5)}),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"attn_mask": torch.zeros(3, 5, dtype=torch.long)}),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"key_padding_mask": torch.zeros(2, 3)}),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"key_padding_mask": torch.zeros(5)}),
        (((2, 3, 4), (2, 5, 4), (2, 6, 4)), {}),
        (((2, 3, 4), (1, 5, 4), (1, 5, 4)), {}),
        (((2, 3, 6), (2, 5, 6), (2, 5, 6)), {}),
        (((3, 4), (2, 5, 4), (2, 5, 4)), {}),
        (((2, 3, 1, 4), (2, 5, 1, 4), (2, 5, 1, 4)), {}),
    ],
)
def test_what_torch_refuses_is_refused_too(shapes: tuple[tuple[int, ...], ...], arguments: dict[str, Any]) -> None:
    base = nn.MultiheadAttention(4, 2, batch_first=True)
    query, key, value = (torch.zeros(shape) for shape in shapes)
    with pytest.raises((AssertionError, RuntimeError)) as theirs:
        base(query, key, value, **arguments)
    layer = ResponseMultiheadAttention(base, 2, "gate", Slot(), torch.Generator())
    with layer.slot.using(Sample({}, torch.zeros(1, 2))), pytest.raises((AssertionError, RuntimeError)) as ours:
        layer(query, key, value, **arguments)
    assert ours.type is theirs.type or len(query) != len(key)  # torch notices that late, at a reshape


@pytest.mark.parametrize("linearise", [False, True])
@pytest.mark.parametrize("rate", [None, "rate"])
def test_a_query_whose_keys_are_all_masked_attends_to_nothing(linearise: bool, rate: str | None) -> None:
    """As left padding under a causal mask has it; all gradients stay finite."""
    torch.manual_seed(0)
    layer = converted(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, bias=False), rate=rate)
    inputs = torch.randn(2, TARGETS, WIDTH, dtype=torch.float64)
    padded = torch.tensor([[True, False, False], [False, False, False]])
    parameters = [p for p in layer.parameters() if p.shape[-1] == 2]  # the gates
    with layer.slot.using(Sample({"rate": torch.tensor([0.3])}, torch.ones(2, 2).double(), linearise)):
        with forward_ad.dual_level():
            outputs, _ = layer(inputs, inputs, inputs, padded, need_weights=False, attn_mask=causal(TARGETS))
            value, tangent = forward_ad.unpack_dual(outputs)  # type: ignore[no-untyped-call]
        total = value if tangent is None else value + tangent
    assert not total[0, 0].any()
    assert bool(total[0, 1].any())
    for gradient in torch.autograd.grad(total.sum(), parameters):
        assert bool(gradient.isfinite().all())


# Dropout of attention weights --------------------------------------------------------------------------------------

RATES = [0.0, 0.3, 0.9, 1.0]


def test_attention_weights_are_dropped_at_each_examples_own_rate() -> None:
    """Against a loop that draws again from the same seed; the weights that are returned are after dropout."""
    torch.manual_seed(0)
    base = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=True)
    untouched = copy.deepcopy(base).double().eval()
    layer = converted(base, None, rate="rate")
    inputs = torch.randn(4, TARGETS, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        _, before = untouched(inputs, inputs, inputs, average_attn_weights=False)
    values = inputs @ untouched.in_proj_weight[2 * WIDTH :].T + untouched.in_proj_bias[2 * WIDTH :]
    torch.manual_seed(3)
    noise = torch.rand(before.shape, dtype=torch.float64)
    keep = [1 - min(rate, MAX_RATE) for rate in RATES]
    expected = torch.stack([before[i] * (noise[i] < keep[i]) / keep[i] for i in range(4)])
    heads = [expected[:, h] @ values[..., 2 * h : 2 * h + 2] for h in range(HEADS)]
    for need_weights in (True, False):
        torch.manual_seed(3)
        with layer.slot.using(Sample({"rate": torch.tensor(RATES, dtype=torch.float64)})):
            outputs, weights = layer(inputs, inputs, inputs, need_weights=need_weights, average_attn_weights=False)
        assert_close(outputs, untouched.out_proj(torch.cat(heads, -1)))
        if need_weights:
            assert_close(weights, expected)


def test_in_eval_mode_nothing_is_dropped() -> None:
    torch.manual_seed(0)
    base = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=True).eval()
    inputs, row = torch.randn(4, TARGETS, WIDTH, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    expected, _ = copy.deepcopy(base).double()(inputs, inputs, inputs)
    for rate in (None, "rate"):
        layer = converted(base, rate=rate)
        for sample in (Sample({"rate": torch.tensor([0.9])}), Sample({"rate": torch.tensor([0.9])}, row)):
            with layer.slot.using(sample):
                assert_close(layer(inputs, inputs, inputs)[0], expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_unbound_it_drops_at_the_fixed_rate_of_the_plain_module(need_weights: bool) -> None:
    torch.manual_seed(0)
    layer = converted(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.4, batch_first=True), None)
    inputs = torch.randn(200, 20, WIDTH, dtype=torch.float64)
    with layer.slot.using(Sample({})):
        outputs, weights = layer(inputs, inputs, inputs, need_weights=need_weights, average_attn_weights=False)
        assert not torch.equal(outputs, layer(inputs, inputs, inputs, need_weights=need_weights)[0])
    if need_weights:
        five_sigma = 5 * math.sqrt(0.4 * 0.6 / weights.numel())
        assert float((weights == 0).double().mean()) == pytest.approx(0.4, abs=five_sigma)


def test_value_and_tangent_share_the_dropped_weights() -> None:
    """The tangent under dropout is the derivative with the same mask."""
    torch.manual_seed(0)
    inputs, rows = torch.randn(4, TARGETS, WIDTH, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    for rate in ("rate", None):
        layer = converted(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=True), rate=rate)

        def outputs(h: Tensor, *, linearise: bool = False, layer: ResponseMultiheadAttention = layer) -> Tensor:
            torch.manual_seed(4)
            with layer.slot.using(Sample({"rate": torch.full((4,), 0.5)}, h, linearise)):
                result: Tensor = layer(inputs, inputs, inputs)[0]
            return result

        with forward_ad.dual_level():
            value, tangent = forward_ad.unpack_dual(outputs(rows, linearise=True))  # type: ignore[no-untyped-call]
        assert_close(value, outputs(0 * rows))
        slope = (outputs(1e-6 * rows) - outputs(-1e-6 * rows)) / 2e-6
        torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-8)


# Parameters --------------------------------------------------------------------------------------------------------


def test_parameters_have_the_names_of_the_base_and_the_response_is_told_apart() -> None:
    layer = converted(nn.MultiheadAttention(WIDTH, HEADS), 2)
    response = {
        f"{name}.{part}"
        for name in ("projections.0", "projections.1", "projections.2", "out_proj")
        for part in ("gate", "response_down", "response_up", "response_bias")
    }
    base = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert set(layer.state_dict()) == base | response
    assert "response=rank 2" in repr(layer)


def test_frozen_out_proj_gets_no_response() -> None:
    base = nn.MultiheadAttention(WIDTH, HEADS)
    base.out_proj.weight.requires_grad_(False)
    layer = ResponseMultiheadAttention(base, 2, "gate", Slot(), torch.Generator())
    assert set(layer.out_proj.state_dict()) == {"weight", "bias"}


def test_changed_out_proj_is_a_reason_to_leave_it_plain() -> None:
    base = nn.MultiheadAttention(WIDTH, HEADS)
    assert ResponseMultiheadAttention.why_not(base) is None
    base.out_proj = nn.utils.parametrizations.weight_norm(base.out_proj)
    reason = ResponseMultiheadAttention.why_not(base)
    assert reason == "its out_proj is a ParametrizedNonDynamicallyQuantizableLinear"
