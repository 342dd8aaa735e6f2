"""The LSTM against torch's own with the weights of each example, and what it drops against slow references."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence

from tune_stn.nn import Slot
from tune_stn.nn.lstm import ResponseLSTM
from tune_stn.nn.response import ResponseSize
from tune_stn.space.sample import Sample
from tune_stn.testing import Case, ResponseLayerContract
from tune_stn.testing.case import assert_close

TIME, BATCH, IN, HIDDEN = 4, 3, 3, 5
SETTINGS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers, no bias, batch first": {"num_layers": 2, "bias": False, "batch_first": True},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
each_size = pytest.mark.parametrize("size", ["full", 2, "gate"])
with_and_without_states = pytest.mark.parametrize("states", [True, False], ids=["states", "no states"])


class TestResponseLSTM(ResponseLayerContract):
    converted = ResponseLSTM

    @pytest.fixture(autouse=True, params=SETTINGS.values(), ids=SETTINGS.keys())
    def chosen(self, request: pytest.FixtureRequest) -> None:
        self.settings = request.param

    def base(self) -> nn.Module:
        return nn.LSTM(IN, HIDDEN, **self.settings)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, TIME, IN)

    def call(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        assert isinstance(layer, nn.LSTM)
        return torch.cat([part.transpose(0, 1).flatten(1) for part in time_major(layer, inputs.transpose(0, 1))], 1)

    def effective_weights(self, case: Case, row: Tensor) -> list[Tensor]:
        assert isinstance(case.layer, ResponseLSTM)
        return [p.detach() for p in plain(case.layer, row[0]).parameters() if p.dim() >= 2]


def time_major(layer: nn.LSTM, inputs: Tensor, states: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
    """Outputs and both last states, for inputs `(time, batch, in)`."""
    outputs, last = layer(inputs.transpose(0, 1) if layer.batch_first else inputs, states)
    return [outputs.transpose(0, 1) if layer.batch_first else outputs, *last]


def converted(
    size: ResponseSize | None, *, rate: str | None = None, weight_rate: str | None = None, **settings: Any
) -> ResponseLSTM:
    """With a response that is not zero, in double precision."""
    torch.manual_seed(0)
    base = nn.LSTM(IN, HIDDEN, **settings).double()
    layer = ResponseLSTM(base, 2, size, Slot(), torch.Generator().manual_seed(1))
    layer.dropout_rate, layer.weight_rate = rate, weight_rate
    for parameter in layer.projections.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.5)
    return layer


def plain(layer: ResponseLSTM, row: Tensor, mask: Callable[[str, Tensor], Tensor] = lambda name, w: w) -> nn.LSTM:
    """Torch's own LSTM with the weights of one example, straight from the definition of a response.

    `mask` is applied to W and to V, with the name of W.
    """
    names = ("num_layers", "bias", "bidirectional", "batch_first")
    module = nn.LSTM(IN, HIDDEN, **{name: getattr(layer, name) for name in names}).double().train(layer.training)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(getattr(layer, name))
        for name, response in layer.projections.items():
            weight, out = getattr(module, f"weight_{name}"), 4 * HIDDEN
            if layer.size is None:
                weight.copy_(mask(name, weight))
                continue
            gates = response.gate @ row
            if layer.size == "gate":
                matrix = weight.clone()
            elif layer.size == "full":
                matrix = response.response_weight
            else:
                matrix = response.response_up @ response.response_down
            weight.copy_(mask(name, weight) + gates[:out, None] * mask(name, matrix))
            if layer.bias:
                getattr(module, f"bias_{name}").add_(
                    gates[out:] * (1 if layer.size == "gate" else response.response_bias)
                )
    return module


def drawn(layer: nn.LSTM) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Inputs, initial states and a response input for each example."""
    generator = torch.Generator().manual_seed(3)
    layers = layer.num_layers * (1 + layer.bidirectional)
    shapes = (TIME, BATCH, IN), (layers, BATCH, HIDDEN), (layers, BATCH, HIDDEN), (BATCH, 2)
    inputs, hidden, cell, rows = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return inputs, (hidden, cell), rows


def assert_all_close(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        assert_close(left, right)


# Against torch -----------------------------------------------------------------------------------------------------


@each_setting
@each_size
@with_and_without_states
def test_each_example_has_the_lstm_of_torch_with_its_own_weights(
    settings: dict[str, Any], size: ResponseSize, states: bool
) -> None:
    """Per example and merged; and the value of a linearised evaluation is torch's with base weights."""
    layer = converted(size, **settings)
    inputs, initial, rows = drawn(layer)

    def evaluate(module: nn.LSTM, sample: Sample) -> list[Tensor]:
        with layer.slot.using(sample), forward_ad.dual_level():
            outputs = time_major(module, inputs, initial if states else None)
            return [forward_ad.unpack_dual(part).primal for part in outputs]  # type: ignore[no-untyped-call]

    of_rows = [evaluate(plain(layer, row), Sample({})) for row in rows]
    per_example = [torch.stack([part[:, i] for i, part in enumerate(parts)], 1) for parts in zip(*of_rows, strict=True)]
    assert_all_close(evaluate(layer, Sample({}, rows)), per_example)
    assert_all_close(evaluate(layer, Sample({}, rows[:1])), of_rows[0])
    at_zero = evaluate(plain(layer, torch.zeros_like(rows[0])), Sample({}))
    assert_all_close(evaluate(layer, Sample({})), at_zero)
    assert_all_close(evaluate(layer, Sample({}, rows, linearise=True)), at_zero)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_without_a_response_it_is_the_very_module_of_torch(training: bool) -> None:
    """Its draws, packed sequences and single sequences included."""
    base = nn.LSTM(IN, HIDDEN, 2, dropout=0.5).train(training)
    layer = ResponseLSTM(copy.deepcopy(base), 2, "gate", Slot(), torch.Generator())
    assert isinstance(layer, nn.LSTM)
    assert (layer.hidden_size, layer.num_layers, layer.dropout) == (HIDDEN, 2, 0.5)
    inputs = torch.randn(TIME, BATCH, IN)
    found = []
    for module in (base, layer):
        torch.manual_seed(0)
        module.flatten_parameters()
        with layer.slot.using(Sample({})):
            packed = module(pack_sequence([inputs[:, 0], inputs[:2, 1]]))[0].data
            found.append([*time_major(module, inputs), module(inputs[:, 0])[0], packed])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@each_size
@pytest.mark.parametrize("rows", [1, BATCH], ids=["merged", "per example"])
def test_a_fixed_dropout_between_layers_draws_as_in_torch(size: ResponseSize, rows: int) -> None:
    layer = converted(size, num_layers=2, dropout=0.5)
    inputs, states, response_input = drawn(layer)
    found = []
    for sample in (Sample({}), Sample({}, torch.zeros_like(response_input[:rows]))):
        torch.manual_seed(0)
        with layer.slot.using(sample), torch.no_grad():
            found.append(time_major(layer, inputs, states))
    assert_all_close(*found)
    assert not torch.allclose(found[0][0], time_major(plain(layer, response_input[0] * 0), inputs, states)[0])


# Linearised --------------------------------------------------------------------------------------------------------


@each_setting
@pytest.mark.parametrize("size", ["full", 2, "gate", None])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_tangent_and_its_gradient_are_those_of_double_backward(
    settings: dict[str, Any],
    size: ResponseSize | None,
    training: bool,
    lstm_reference: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Along the response input, the inputs and the initial states; dropout, drawn alike, included."""
    layer = converted(size, rate="between", weight_rate="weights", **settings).train(training)
    values = {"between": torch.linspace(0, 0.8, BATCH), "weights": torch.tensor([0.3])}
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_("projections" in name)
    inputs, states, rows = drawn(layer)
    given = (inputs, *states, rows)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    incoming = [torch.cos(x).requires_grad_() for x in given[:3]]

    def together(x: Tensor, h: Tensor, c: Tensor, r: Tensor, *, linearise: bool = False) -> Tensor:
        torch.manual_seed(0)
        with layer.slot.using(Sample(values, r, linearise)):
            return torch.cat([part.flatten() for part in time_major(layer, x, (h, c))])

    def gradients(value: Tensor, tangent: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((value.detach() + tangent).sin().sum(), [*parameters, *incoming]))

    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(given[:3], incoming, strict=True)]  # type: ignore[no-untyped-call]
        value, tangent = forward_ad.unpack_dual(together(*duals, rows, linearise=True))  # type: ignore[no-untyped-call]
    monkeypatch.setattr("tune_stn.nn.lstm.layer.lstm", lstm_reference)
    start, along = (*given[:3], torch.zeros_like(rows)), (*incoming, rows)
    value, expected = torch.autograd.functional.jvp(together, start, along, create_graph=True)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(tangent, expected, rtol=1e-10, atol=1e-10)
    for left, right in zip(gradients(value, tangent), gradients(value, expected), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


# What is dropped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["full", 2, "gate", None])
@pytest.mark.parametrize("rows", [1, BATCH], ids=["merged", "per example"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
def test_units_between_layers_are_dropped_at_the_rate_of_their_example(
    size: ResponseSize | None, rows: int, batch_first: bool
) -> None:
    """A mask for each unit and step, none after the last layer, none in eval mode."""
    layer = converted(size, rate="between", num_layers=2, dropout=0.9, batch_first=batch_first)
    inputs, _, response_input = drawn(layer)
    response_input = response_input[:rows]
    rates = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(4)
        with layer.slot.using(Sample({"between": rates}, response_input)):
            found = time_major(layer, inputs)[0]
            unmasked = time_major(layer.eval(), inputs)[0]
        torch.manual_seed(4)
        keep = (1 - rates).view(1, -1, 1)
        mask = torch.rand(TIME, BATCH, HIDDEN, dtype=torch.float64).lt(keep) / keep
        for i, row in enumerate(response_input.expand(BATCH, -1)):
            module = plain(layer, row)
            assert_close(unmasked[:, i : i + 1], time_major(module, inputs[:, i : i + 1])[0])
            layers = [nn.LSTM(size, HIDDEN).double() for size in (IN, HIDDEN)]
            for index, single in enumerate(layers):
                for name, value in single.named_parameters():
                    value.copy_(getattr(module, name.replace("l0", f"l{index}")))
            between = layers[0](inputs[:, i : i + 1])[0] * mask[:, i : i + 1]
            assert_close(found[:, i : i + 1], layers[1](between)[0])


@pytest.mark.parametrize("size", ["full", 2, "gate", None])
@pytest.mark.parametrize("rows", [1, BATCH], ids=["merged", "per example"])
def test_hidden_weights_and_their_response_are_dropped_together(size: ResponseSize | None, rows: int) -> None:
    """One mask for the whole batch and sequence, drawn afresh at each call; input weights stay."""
    layer = converted(size, weight_rate="weights", num_layers=2)
    inputs, states, response_input = drawn(layer)
    response_input = response_input[:rows]
    sample = Sample({"weights": torch.tensor([0.4])}, response_input)
    with layer.slot.using(sample), torch.no_grad():
        torch.manual_seed(4)
        first, second = (time_major(layer, inputs, states)[0] for _ in range(2))
        torch.manual_seed(4)
        masks = {name: layer.weight_mask(layer.weight_hh_l0) for name in ("hh_l0", "hh_l1")}

        def mask(name: str, weight: Tensor) -> Tensor:
            return weight * masks[name] if name in masks else weight

        for i, row in enumerate(response_input.expand(BATCH, -1)):
            one = slice(i, i + 1)
            expected = time_major(plain(layer, row, mask), inputs[:, one], (states[0][:, one], states[1][:, one]))[0]
            assert_close(first[:, one], expected)
        assert not torch.allclose(first, second)
        layer.eval()
        assert_close(time_major(layer, inputs, states)[0], time_major(layer, inputs, states)[0])


def test_weights_cannot_be_dropped_for_each_example() -> None:
    layer = converted("gate", weight_rate="weights")
    inputs, _, rows = drawn(layer)
    with (
        layer.slot.using(Sample({"weights": torch.full((BATCH,), 0.4)}, rows)),
        pytest.raises(ValueError, match="per_batch"),
    ):
        layer(inputs)


# Lower precision, errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, BATCH], ids=["plain", "merged", "per example"])
def test_under_autocast_it_is_in_the_type_of_torchs_own(rows: int) -> None:
    layer = converted("full", num_layers=2).float()
    inputs, _, response_input = drawn(layer)
    inputs, response_input = inputs.float(), response_input.float() * 0
    exact = time_major(plain(layer.double(), response_input[0].double()), inputs.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16), layer.slot.using(Sample({}, response_input[:rows] if rows else None)):
        for ours, theirs in zip(time_major(layer, inputs), exact, strict=True):
            assert ours.dtype == torch.bfloat16
            torch.testing.assert_close(ours.double(), theirs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("linearise", [False, True])
def test_inputs_it_cannot_take_are_refused(linearise: bool) -> None:
    layer = converted("gate", batch_first=True)
    inputs, states, rows = drawn(layer)
    inputs = inputs.transpose(0, 1)
    packed = pack_sequence(list(inputs))
    with layer.slot.using(Sample({}, rows, linearise)):
        with pytest.raises(TypeError, match=r"PackedSequence.*pad them.*mask"):
            layer(packed)
        with pytest.raises(ValueError, match=r"shape \(4, 3\).*\(batch, time, features\).*batch axis of size 1"):
            layer(inputs[0])
        with pytest.raises(ValueError, match=r"shape \(2, 4, 3\) with hyperparameters for 3 examples"):
            layer(inputs[:2])
        with pytest.raises(RuntimeError, match="size"):
            layer(inputs[..., :2])
        with pytest.raises(RuntimeError, match=r"hidden\[1\]"):
            layer(inputs, (states[0], states[1][:, :2]))


def test_a_projected_hidden_state_is_left_plain() -> None:
    assert "proj_size" in str(ResponseLSTM.why_not(nn.LSTM(IN, HIDDEN, proj_size=2)))
    assert ResponseLSTM.why_not(nn.LSTM(IN, HIDDEN)) is None


def test_the_response_is_drawn_as_torch_draws_an_lstm() -> None:
    """By the size of the hidden state, whatever the size of the inputs."""
    layer = ResponseLSTM(nn.LSTM(4, 100), 2, "full", Slot(), torch.Generator().manual_seed(0))
    for name, parameter in layer.projections.named_parameters():
        if "gate" not in name:
            assert float(parameter.detach().abs().max()) == pytest.approx(0.1, rel=0.05)
