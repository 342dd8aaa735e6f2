"""The contract of all response layers, for each family and size.

A new family is one line in `FAMILIES`; it then gets every test of this file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn import ResponseLayer, Slot
from tune_stn.nn.response import ResponseSize, check_response_size
from tune_stn.nn.self_tuning import RESPONSES
from tune_stn.space.sample import Sample

BATCH, INPUTS = 3, 2


@dataclass(frozen=True)
class Family:
    make: Callable[..., nn.Module]
    shape: tuple[int, ...]


FAMILIES: dict[str, Family] = {
    "linear": Family(lambda **kw: nn.Linear(3, 4, **kw), (BATCH, 3)),
    "linear on sequences": Family(lambda **kw: nn.Linear(3, 4, **kw), (BATCH, 2, 5, 3)),
    "conv1d": Family(lambda **kw: nn.Conv1d(2, 3, 3, stride=2, padding=1, **kw), (BATCH, 2, 6)),
    "conv2d": Family(lambda **kw: nn.Conv2d(2, 3, 2, **kw), (BATCH, 2, 3, 4)),
    "conv2d in groups": Family(lambda **kw: nn.Conv2d(4, 6, 2, groups=2, dilation=2, **kw), (BATCH, 4, 4, 3)),
    "conv2d depthwise": Family(lambda **kw: nn.Conv2d(3, 3, 3, groups=3, padding="same", **kw), (BATCH, 3, 3, 3)),
    "conv2d circular": Family(
        lambda **kw: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", **kw), (BATCH, 2, 3, 4)
    ),
    "conv3d": Family(lambda **kw: nn.Conv3d(1, 2, 2, padding=1, **kw), (BATCH, 1, 2, 2, 2)),
}
SIZES: list[ResponseSize] = ["full", 1, 3, "gate"]

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
each_size = pytest.mark.parametrize("size", SIZES)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


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
        self, response_input: Tensor | None, *, linearise: bool = False, inputs: Tensor | None = None
    ) -> Tensor:
        with self.layer.slot.using(Sample({}, response_input, linearise)):
            outputs: Tensor = self.layer(self.inputs if inputs is None else inputs)
        return outputs

    def linearised(self, response_input: Tensor, inputs: Tensor | None = None, tangent: Tensor | None = None) -> Tensor:
        """Value and tangent, stacked."""
        inputs = self.inputs if inputs is None else inputs
        with forward_ad.dual_level():
            if tangent is not None:
                inputs = forward_ad.make_dual(inputs, tangent)  # type: ignore[no-untyped-call]
            dual = self(response_input, linearise=True, inputs=inputs)
            return torch.stack(tuple(forward_ad.unpack_dual(dual)))  # type: ignore[no-untyped-call]

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
        weight = layer.weight + unit.view(-1, *[1] * (layer.weight.dim() - 1)) * matrix
        plain._parameters["weight"] = nn.Parameter(weight.detach())
        if bias is not None:
            offset = gates[out:] if layer.size == "gate" else gates[out:] * layer.response_bias
            plain._parameters["bias"] = nn.Parameter((bias + offset).detach())
        return plain


def make_case(
    family: Family, size: ResponseSize, bias: bool = True, dtype: torch.dtype = torch.float64, zero_gate: bool = False
) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = family.make(bias=bias).to(dtype)
    plain = RESPONSES[type(base)]
    layer = plain(base, INPUTS, size, Slot(), seeded(1))
    if not zero_gate:
        with torch.no_grad():
            layer.gate.copy_(noise(*layer.gate.shape, seed=2) * 0.5)
    return Case(
        base,
        layer,
        noise(*family.shape, seed=3, dtype=dtype),
        noise(BATCH, INPUTS, seed=4, dtype=dtype),
    )


def parameters_of(case: Case) -> list[Tensor]:
    return list(case.layer.parameters())


# Zero response ----------------------------------------------------------------------------------------------------


@each_family
@each_size
@with_and_without_bias
def test_no_response_input_is_exactly_the_base(family: Family, size: ResponseSize, bias: bool) -> None:
    case = make_case(family, size, bias)
    assert torch.equal(case(None), case.base(case.inputs))


@each_family
@each_size
@with_and_without_bias
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_starts_as_its_base(family: Family, size: ResponseSize, bias: bool, dtype: torch.dtype) -> None:
    """U is zero at first, so whatever the response input; and a response input of zero does the same later."""
    fresh = make_case(family, size, bias, dtype, zero_gate=True)
    plain = fresh.base(fresh.inputs)
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (1e-12, 1e-13)
    for rows in (fresh.response_input, fresh.response_input[:1]):
        torch.testing.assert_close(fresh(rows), plain, rtol=rtol, atol=atol)
    assert fresh(fresh.response_input).dtype == dtype
    used = make_case(family, size, bias, dtype)
    zero = torch.zeros_like(used.response_input)
    torch.testing.assert_close(used(zero), plain, rtol=rtol, atol=atol)
    value, tangent = used.linearised(zero)
    torch.testing.assert_close(value, plain, rtol=rtol, atol=atol)
    assert not tangent.any()


@each_family
@each_size
def test_first_gradient_of_the_gates_is_not_zero(family: Family, size: ResponseSize) -> None:
    """Were V zero with U, no response would ever be learned."""
    case = make_case(family, size, zero_gate=True)
    (by_gate,) = torch.autograd.grad(case(case.response_input).square().sum(), [case.layer.gate])
    assert bool((by_gate != 0).all())


# Per example, merged ----------------------------------------------------------------------------------------------


@each_family
@each_size
@with_and_without_bias
def test_each_example_goes_through_its_own_plain_layer(family: Family, size: ResponseSize, bias: bool) -> None:
    case = make_case(family, size, bias)
    with torch.no_grad():
        expected = torch.cat(
            [case.merged(row)(example[None]) for row, example in zip(case.response_input, case.inputs, strict=True)]
        )
    outputs = case(case.response_input)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-12)
    assert float((outputs - case.base(case.inputs)).detach().abs().max()) > 1e-2  # the response is at work


@each_family
@each_size
@with_and_without_bias
def test_one_shared_row_is_that_row_for_each_example(family: Family, size: ResponseSize, bias: bool) -> None:
    """The merged form, as hyper-steps and evaluation use it, is the per-example form; and their gradients agree."""
    case = make_case(family, size, bias)
    shared = case.response_input[1:2].clone().requires_grad_()
    merged, expanded = case(shared), case(shared.expand(BATCH, -1))
    torch.testing.assert_close(merged, expanded, rtol=1e-10, atol=1e-12)
    weights = noise(*merged.shape, seed=5)
    wanted = [shared, *parameters_of(case)]
    of_merged = torch.autograd.grad((merged * weights).sum(), wanted)
    of_expanded = torch.autograd.grad((expanded * weights).sum(), wanted)
    for left, right in zip(of_merged, of_expanded, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


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
def test_it_moves_to_another_device(family: Family) -> None:
    """Meta is a device that every machine has; all parameters go along and the shapes stay."""
    case = make_case(family, "full")
    expected = case(case.response_input).shape
    case.layer.to("meta")
    outputs = case(case.response_input.to("meta"), inputs=case.inputs.to("meta"))
    assert outputs.device.type == "meta"
    assert outputs.shape == expected


# Gradients --------------------------------------------------------------------------------------------------------


@each_family
@each_size
@with_and_without_bias
@pytest.mark.parametrize("mode", ["per example", "merged", "linearised"])
def test_gradients_are_those_of_finite_differences(family: Family, size: ResponseSize, bias: bool, mode: str) -> None:
    """With respect to inputs, response input and every parameter."""
    case = make_case(family, size, bias)
    names = [name for name, _ in case.layer.named_parameters()]
    tangent = noise(*case.inputs.shape, seed=6)

    def outputs(inputs: Tensor, response_input: Tensor, tangent: Tensor, *parameters: Tensor) -> Tensor:
        before = {name: case.layer._parameters.pop(name) for name in names}
        for name, parameter in zip(names, parameters, strict=True):
            setattr(case.layer, name, parameter)
        try:
            if mode == "linearised":
                return case.linearised(response_input, inputs, tangent)
            return case(response_input, inputs=inputs)
        finally:
            for name in names:
                delattr(case.layer, name)
            case.layer._parameters.update(before)

    rows = case.response_input[:1] if mode == "merged" else case.response_input
    arguments = [case.inputs, rows, *([tangent] if mode == "linearised" else []), *parameters_of(case)]
    arguments = [argument.detach().clone().requires_grad_() for argument in arguments]
    function = outputs if mode == "linearised" else lambda x, h, *rest: outputs(x, h, tangent, *rest)
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("mode", ["per example", "merged"])
@each_size
def test_all_entries_of_the_jacobian(size: ResponseSize, mode: str) -> None:
    """The fast mode above compares projections; here each entry, for the smallest family."""
    case = make_case(FAMILIES["conv1d"], size)
    rows = case.response_input[:1] if mode == "merged" else case.response_input
    arguments = [case.inputs.requires_grad_(), rows.clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, h: case(h, inputs=x), arguments)


# Linearised -------------------------------------------------------------------------------------------------------


@each_family
@each_size
@with_and_without_bias
@pytest.mark.parametrize("rows", [BATCH, 1])
def test_tangent_is_the_derivative_along_the_response_input(
    family: Family, size: ResponseSize, bias: bool, rows: int
) -> None:
    """The layer is affine in h, so a difference at any step is exact."""
    case = make_case(family, size, bias)
    response_input = case.response_input[:rows]
    value, tangent = case.linearised(response_input).detach()
    plain = case(None).detach()
    torch.testing.assert_close(value, plain, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(tangent, case(response_input).detach() - plain, rtol=1e-9, atol=1e-10)


@each_family
@each_size
def test_tangent_of_the_inputs_passes_through_the_base_weight(family: Family, size: ResponseSize) -> None:
    """At h = 0 the response does not touch it: d/de f(x + e t; e h) = W t + response."""
    case = make_case(family, size)
    incoming = noise(*case.inputs.shape, seed=6)
    _, tangent = case.linearised(case.response_input, tangent=incoming)
    step = 1e-6

    def moved(size: float) -> Tensor:
        return case(case.response_input * size, inputs=case.inputs + incoming * size).detach()

    torch.testing.assert_close(tangent.detach(), (moved(step) - moved(-step)) / (2 * step), rtol=1e-6, atol=1e-7)


# Penalties --------------------------------------------------------------------------------------------------------


@each_family
@each_size
@with_and_without_bias
def test_squared_norm_is_that_of_each_examples_weight(family: Family, size: ResponseSize, bias: bool) -> None:
    case = make_case(family, size, bias)
    weights = [torch.as_tensor(case.merged(row).weight).detach() for row in case.response_input]
    expected = torch.stack([weight.square().sum() for weight in weights])
    squared_norm = case.layer.squared_norm(case.response_input)
    torch.testing.assert_close(squared_norm.detach(), expected, rtol=1e-10, atol=1e-12)
    plain = case.layer.squared_norm(None).detach()
    torch.testing.assert_close(plain, case.layer.weight.detach().square().sum()[None])
    torch.testing.assert_close(case.layer.squared_norm(case.response_input[:1]).detach(), expected[:1])


# Parameters -------------------------------------------------------------------------------------------------------


@each_family
@each_size
@with_and_without_bias
def test_base_parameters_are_taken_over_and_the_others_are_the_response(
    family: Family, size: ResponseSize, bias: bool
) -> None:
    case = make_case(family, size, bias)
    assert case.layer.weight is case.base.weight
    assert case.layer.bias is case.base.bias
    base = {id(parameter) for parameter in case.base.parameters()}
    response = {id(parameter) for parameter in case.layer.response_parameters()}
    assert base | response == {id(parameter) for parameter in case.layer.parameters()}
    assert not base & response
    expected = {"full": 2, "gate": 1}.get(str(size), 3) + (bias and size != "gate")
    assert len(response) == expected


@each_family
@each_size
def test_response_is_drawn_by_its_own_generator(family: Family, size: ResponseSize) -> None:
    """The global stream is not touched, nor are the base weights: methods stay paired at a seed."""
    torch.manual_seed(7)
    base = family.make()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    state = torch.get_rng_state()
    drawn = [RESPONSES[type(base)](base, INPUTS, size, Slot(), seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    first, same, other = (list(layer.response_parameters()) for layer in drawn)
    assert all(torch.equal(left, right) for left, right in zip(first, same, strict=True))
    if size != "gate":
        assert not any(torch.equal(left, right) for left, right in zip(first[1:], other[1:], strict=True))


@pytest.mark.parametrize("size", ["full", 4, 64])
def test_response_weight_has_the_variance_of_the_base_weight(size: ResponseSize) -> None:
    """Uniform in ±1/sqrt(fan_in), and products of factors have the same variance, 1/(3 fan_in)."""
    base = nn.Linear(300, 400)
    layer = RESPONSES[nn.Linear](base, INPUTS, size, Slot(), seeded(0))
    assert float(layer.response_matrix().detach().var()) == pytest.approx(1 / 900, rel=0.1)
    assert float(layer.response_bias.detach().abs().max()) <= 300**-0.5


@each_family
@each_size
@with_and_without_bias
def test_state_dict_is_plain_tensors_and_restores_the_layer(family: Family, size: ResponseSize, bias: bool) -> None:
    case = make_case(family, size, bias)
    buffer = io.BytesIO()
    torch.save(case.layer.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert set(state) == {name for name, _ in case.layer.named_parameters()}
    other = make_case(family, size, bias)
    with torch.no_grad():
        for parameter in other.layer.parameters():
            parameter.zero_()
    other.layer.load_state_dict(state, strict=True)
    assert torch.equal(other(case.response_input), case(case.response_input))


# Errors -----------------------------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("linearise", [False, True])
def test_rows_for_another_batch_are_refused(family: Family, linearise: bool) -> None:
    case = make_case(family, "full")
    rows = noise(BATCH + 2, INPUTS, seed=4)
    with pytest.raises(ValueError, match=f"hyperparameters for {BATCH + 2} examples") as caught:
        case(rows, linearise=linearise)
    assert type(case.layer).__name__ in str(caught.value)
    assert str(tuple(case.inputs.shape)) in str(caught.value)
    assert "the first axis must be the batch" in str(caught.value)


def test_a_layer_outside_a_sample_says_what_to_do() -> None:
    case = make_case(FAMILIES["linear"], "full")
    with pytest.raises(RuntimeError, match=r"with model\.using\(sample\)"):
        case.layer(case.inputs)


@pytest.mark.parametrize(("given", "size"), [("full", "full"), ("gate", "gate"), (1, 1), (64, 64), ("8", 8)])
def test_sizes_accepted(given: object, size: object) -> None:
    assert check_response_size(given) == size


@pytest.mark.parametrize("given", [0, -1, 1.5, True, "auto", "rank 8", "", None, "0", ["full"]])
def test_sizes_refused_with_those_accepted(given: object) -> None:
    with pytest.raises(ValueError, match="accepted are 'full', 'gate' and a rank of 1 or more") as caught:
        check_response_size(given)
    assert repr(given) in str(caught.value) or given == "0"
