"""The response form of `nn.LSTM`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from tune_stn.nn.dropout import UnitDropout
from tune_stn.nn.lstm.autocast import raises_under_autocast
from tune_stn.nn.lstm.kernel import lstm, tangents, unroll
from tune_stn.nn.lstm.recurrence import IN_PLACE, Projection, Recurrence
from tune_stn.nn.projection import ResponseProjection
from tune_stn.nn.response import Responding, ResponseSize, size_in_words
from tune_stn.nn.slot import Slot, check_rows

State = tuple[Tensor, Tensor]


class ResponseLSTM(Responding, nn.LSTM):
    """`nn.LSTM` whose input and hidden projections respond, 4 * hidden units each; called as the plain module is.

    It stays an LSTM of torch, and is that very one without a response. With one it takes batches of sequences of equal
    length; a response input that all examples share costs a plain LSTM.

    A `weight_rate` drops entries of the hidden-to-hidden weights and of their response, the same at all steps of a
    sequence. A low-rank response then costs the full one there.

    Attributes:
        projections: Responses by the names of the base weights: `ih_l0`, `hh_l0`, `ih_l0_reverse` and so on. The base
            parameters keep their names (`weight_ih_l0` and so on) and stay here.
        dropout_rate: Hyperparameter that is the rate at which units between the layers are dropped, for each example
            its own. Default None: the fixed rate of the plain module.
        recurrence: Implementation of the loop over time where examples differ. Default one that works in place.
    """

    dropout_rate: str | None = None
    recurrence: Recurrence = IN_PLACE

    def __init__(
        self, base: nn.LSTM, inputs: int, size: ResponseSize | None, slot: Slot, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)
        self.take_over(base)
        self._init_flat_weights()
        self.slot = slot
        self.size = size
        self.projections = nn.ModuleDict()
        for name in self._flat_weights_names:
            kind, _, name = name.partition("_")
            if kind == "weight":
                weight, bias = self._base(name)
                self.projections[name] = _GateProjection(weight, bias, inputs, size, slot, generator)
        self.train(base.training)

    @classmethod
    def why_not(cls, base: nn.Module) -> str | None:
        assert isinstance(base, nn.LSTM)
        return "its hidden state is projected (proj_size > 0)" if base.proj_size else None

    def forward(self, input: Any, hx: State | None = None) -> tuple[Any, State]:
        sample = self.slot.sample
        response_input = None if self.size is None else sample.response_input
        reads_rate = self.training and not (self.dropout_rate is None and self.weight_rate is None)
        device = (input.data if isinstance(input, PackedSequence) else input).device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        raises = autocast and raises_under_autocast(device)
        if response_input is None and not (reads_rate or sample.linearise or raises):
            return cast(tuple[Any, State], super().forward(input, hx))
        inputs, states = self._checked(input, hx, rows=1 if response_input is None else response_input.shape[0])
        dtype = torch.get_autocast_dtype(device) if autocast and inputs.dtype == torch.float32 else inputs.dtype
        sides = {name: self._side(name, response_input).to(dtype) for name in self.projections}
        # All is in its final type, so autocast has nothing to do at each step.
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            outputs, states = self._layers(inputs.to(dtype), (states[0].to(dtype), states[1].to(dtype)), sides)
        return outputs.transpose(0, 1) if self.batch_first else outputs, states

    def _checked(self, input: Any, hx: State | None, rows: int) -> tuple[Tensor, State]:
        """Inputs `(time, batch, in)` and the initial states, of zeros if not given.

        Raises:
            TypeError: the input is a PackedSequence.
            ValueError: there is no batch axis, or hyperparameters for another batch.
            RuntimeError: sizes do not fit, as torch says it.
        """
        if isinstance(input, PackedSequence):
            raise TypeError(
                f"{type(self).__name__} got a PackedSequence, but takes sequences of one length: pad them "
                "(torch.nn.utils.rnn.pad_sequence) and leave what was added out of the loss by a mask"
            )
        if input.dim() != 3:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {tuple(input.shape)}, but needs one with a batch axis, "
                f"({'batch, time' if self.batch_first else 'time, batch'}, features): give a single sequence a batch "
                "axis of size 1"
            )
        inputs = input.transpose(0, 1) if self.batch_first else input
        check_rows(rows, inputs.transpose(0, 1), where=f"{type(self).__name__}, here with the batch shown first,")
        if hx is None:
            layers = self.num_layers * (1 + self.bidirectional)
            zeros = inputs.new_zeros(layers, inputs.shape[1], self.hidden_size)
            hx = zeros, zeros
        self.check_forward_args(input, hx, None)
        return inputs, hx

    def _layers(self, inputs: Tensor, states: State, sides: Mapping[str, _Side]) -> tuple[Tensor, State]:
        """All layers: outputs `(time, batch, hidden)`, twice as wide if bidirectional, and the last states."""
        rates_between = self.training and self.dropout_rate is not None and self.num_layers > 1
        shared = all(side.unit is None or len(side.unit) == 1 for side in sides.values())
        if shared and not self.slot.sample.linearise and not rates_between:
            rate = self.dropout if self.training else 0.0
            return _fused(inputs, states, list(sides.values()), self.num_layers, rate, self.bidirectional)
        per_example = _linearised if self.slot.sample.linearise else _per_example
        one_for_all = shared and not self.slot.sample.linearise
        evaluate = _shared if one_for_all else partial(per_example, recurrence=self.recurrence)
        last: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in (False, True)[: 1 + self.bidirectional]:
                name = f"l{layer}_reverse" if reverse else f"l{layer}"
                given = inputs.flip(0) if reverse else inputs
                initial = states[0][len(last)], states[1][len(last)]
                output, final = evaluate(given, initial, sides[f"ih_{name}"], sides[f"hh_{name}"])
                outputs.append(output.flip(0) if reverse else output)
                last.append(final)
            inputs = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if layer + 1 < self.num_layers:
                inputs = self._dropped(inputs)
        hidden, cell = (torch.stack(state) for state in zip(*last, strict=True))
        return inputs, (hidden, cell)

    def _dropped(self, inputs: Tensor) -> Tensor:
        if not self.training or self.dropout_rate is None:
            return F.dropout(inputs, self.dropout, self.training)
        dropout = UnitDropout(self.dropout_rate, self.slot)
        dropout.batch_axis = 1
        return cast(Tensor, dropout(inputs))

    def _base(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a projection such as `ih_l0`."""
        return getattr(self, f"weight_{name}"), getattr(self, f"bias_{name}") if self.bias else None

    def _side(self, name: str, response_input: Tensor | None) -> _Side:
        """A projection at the current sample; its weights dropped, if it is one of the hidden state."""
        weight, bias = self._base(name)
        mask = self.weight_mask(weight) if name.startswith("hh") else None
        kept = weight if mask is None else weight * mask
        if response_input is None:
            return _Side(kept, bias)
        projection = self.projections[name]
        assert isinstance(projection, _GateProjection)
        with projection.lent(weight, bias):
            unit, offset = projection.gates(response_input)
            if self.size == "gate":
                return _Side(kept, bias, unit, offset)
            if self.size == "full" or mask is not None:
                matrix = projection.response_matrix()
                return _Side(kept, bias, unit, offset, (matrix if mask is None else matrix * mask,))
            return _Side(kept, bias, unit, offset, (projection.response_down, projection.response_up))

    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {}
        for name in self.projections:
            found[f"weight_{name}"], found[f"bias_{name}"] = self._side(name, response_input).merged()
        return found

    def squared_norms(self, response_input: Tensor | None) -> dict[str, Tensor]:
        norms = {}
        for name, projection in self.projections.items():
            assert isinstance(projection, _GateProjection)
            with projection.lent(*self._base(name)):
                norms[f"weight_{name}"] = projection.squared_norm(response_input)
        return norms

    def response_parameters(self) -> Iterator[nn.Parameter]:
        """None of its own: the projections give theirs."""
        return iter(())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, response={size_in_words(self.size)}"


class _GateProjection(ResponseProjection):
    def response_bound(self, weight: Tensor) -> float:
        """Torch draws all parameters of an LSTM alike, by the size of its hidden state."""
        return 1 / math.sqrt(weight.shape[0] // 4)


@dataclass(frozen=True)
class _Side:
    """What a cell adds to its gates from its input, or from its hidden state: `W x + b + u * (V x) + c * b'`.

    Attributes:
        weight: W, some entries perhaps dropped.
        bias: The vector b, shape `(4 * hidden,)`, or None.
        unit: The factors u, shape `(rows, 4 * hidden)`. Default None: no response.
        offset: `c * b'`, of the same shape, or None.
        factors: Factors of the matrix V, the innermost first. Default empty: V is W.
    """

    weight: Tensor
    bias: Tensor | None
    unit: Tensor | None = None
    offset: Tensor | None = None
    factors: tuple[Tensor, ...] = ()

    def to(self, dtype: torch.dtype) -> _Side:
        bias, unit, offset = (None if x is None else x.to(dtype) for x in (self.bias, self.unit, self.offset))
        return _Side(self.weight.to(dtype), bias, unit, offset, tuple(factor.to(dtype) for factor in self.factors))

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias at the one row that all examples share."""
        if self.unit is None:
            return self.weight, self.bias
        matrix = self.weight
        if self.factors:
            matrix = self.factors[0] if len(self.factors) == 1 else self.factors[1] @ self.factors[0]
        bias = None if self.bias is None or self.offset is None else self.bias + self.offset[0]
        return torch.addcmul(self.weight, matrix, self.unit.view(-1, 1)), bias

    def projection(self) -> Projection:
        """With a unit for each example."""
        if self.unit is None or self.factors:
            return Projection(self.weight, self.factors, self.unit)
        return Projection(None, (self.weight,), 1 + self.unit)


def _per_example(
    inputs: Tensor, state: State, from_inputs: _Side, from_hidden: _Side, *, recurrence: Recurrence
) -> tuple[Tensor, State]:
    """A layer in one direction: outputs `(time, batch, hidden)` and last state, each `(batch, hidden)`."""
    given = (from_inputs.bias, from_inputs.offset, from_hidden.bias, from_hidden.offset)
    offset = _total(inputs.new_zeros(len(from_hidden.weight)), *given).expand(inputs.shape[1], -1)
    sides = from_inputs.projection(), from_hidden.projection()
    outputs, cell = lstm(inputs, *state, offset, *sides, recurrence=recurrence)
    return outputs, (outputs[-1], cell)


def _shared(inputs: Tensor, state: State, from_inputs: _Side, from_hidden: _Side) -> tuple[Tensor, State]:
    """As `_per_example`, where all examples share the response, or there is none."""
    outputs, (hidden, cell) = _fused(inputs, (state[0][None], state[1][None]), [from_inputs, from_hidden])
    return outputs, (hidden[0], cell[0])


def _fused(
    inputs: Tensor,
    states: State,
    sides: Sequence[_Side],
    layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
) -> tuple[Tensor, State]:
    """Torch's own kernel for all layers at once."""
    merged = [side.merged() for side in sides]
    has_bias = merged[0][1] is not None
    weights: list[Any] = []
    for (of_inputs, bias), (of_hidden, other_bias) in zip(merged[::2], merged[1::2], strict=True):
        weights += [of_inputs, of_hidden, bias, other_bias] if has_bias else [of_inputs, of_hidden]
    # In eval mode too: cuDNN has no gradient otherwise, and a hyper-step needs one.
    train = dropout > 0 or torch.is_grad_enabled()
    with warnings.catch_warnings():
        # Made for this very call, they cannot lie together in memory, as cuDNN would have them.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        outputs, hidden, cell = torch.lstm(
            inputs, states, weights, has_bias, layers, dropout, train, bidirectional, False
        )
    return outputs, (hidden, cell)


def _linearised(
    inputs: Tensor, state: State, from_inputs: _Side, from_hidden: _Side, *, recurrence: Recurrence
) -> tuple[Tensor, State]:
    """As `_per_example`, but values of the base layer, and as tangents their first-order response: dual tensors.

    Base parameters are constants here, so backward runs through tangents only.
    """
    (x, of_x), (h, of_h), (c, of_c) = (forward_ad.unpack_dual(given) for given in (inputs, *state))  # type: ignore[no-untyped-call]
    if from_inputs.unit is None and of_x is None and of_h is None and of_c is None:
        return _shared(inputs, state, from_inputs, from_hidden)
    weights = from_inputs.weight, from_hidden.weight
    nothing = x.new_zeros(len(from_hidden.weight))
    # Where V is W, the run leaves W x and W h behind.
    as_factors = from_inputs.unit is not None and not from_inputs.factors
    with torch.no_grad():
        sides = (Projection(None, (w,), w.new_ones(1)) if as_factors else Projection(w) for w in weights)
        offset = _total(nothing, from_inputs.bias, from_hidden.bias)
        result = unroll(x, h, c, offset, *sides, recurrence=recurrence)
    carried = None if of_x is None else F.linear(of_x, weights[0])
    entering = _total(nothing, from_inputs.offset, from_hidden.offset, carried)
    for side, outputs in ((from_inputs, result.input_chain[-1]), (from_hidden, result.hidden_chain[-1])):
        for factor in side.factors:
            outputs = F.linear(outputs, factor)
        if side.unit is not None:
            entering = torch.addcmul(entering, outputs, side.unit)
    entering = entering.expand_as(result.gates)
    still = torch.zeros_like(h)
    of_state = (still if change is None else change for change in (of_h, of_c))
    changes, of_cell = tangents(result, weights[1], entering, *of_state, recurrence=recurrence)
    outputs = forward_ad.make_dual(result.hidden[1:], changes)  # type: ignore[no-untyped-call]
    return outputs, (outputs[-1], forward_ad.make_dual(result.cell[-1], of_cell))  # type: ignore[no-untyped-call]


def _total(first: Tensor, *others: Tensor | None) -> Tensor:
    """Sum of the terms that there are."""
    for term in others:
        first = first if term is None else first + term
    return first
