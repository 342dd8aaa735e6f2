"""The recurrence of an LSTM whose projections differ from example to example, with derivatives written by hand.

Sequences are time-major: inputs `(time, batch, in)`, hidden states `(time, batch, hidden)`, gates
`(time, batch, 4 * hidden)` in torch's order input, forget, cell, output.

Speed comes from three things: what does not depend on the hidden state is one product for all time steps, and so is the
gradient of a weight; a step writes to buffers made once; and a weight's gradient is a node of its own in the graph,
so that a hyper-step, which asks for none, pays for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Both are `(gradient of the output, output) -> gradient of the input`, in one pass.
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


@dataclass(frozen=True)
class Projection:
    """What an input, or the hidden state, gives to the gates: `weight x + unit * (M_k ... M_1 x)`.

    Attributes:
        weight: of shape `(4 * hidden, in)`, or None for no such term.
        factors: M_1 to M_k, the last with `4 * hidden` rows; empty for no such term.
        unit: of shape `(batch, 4 * hidden)`, or broadcast to it; with factors only.
    """

    weight: Tensor | None
    factors: tuple[Tensor, ...] = ()
    unit: Tensor | None = None


class Run(NamedTuple):
    """All that a run over a sequence leaves behind.

    Attributes:
        gates: after their sigmoid or tanh.
        hidden: hidden states from the initial one on, `(time + 1, batch, hidden)`.
        cell: cell states, likewise.
        squashed: tanh of all cell states but the initial one.
        input_chain: the inputs, and what each factor of their projection made of it.
        hidden_chain: hidden states but the last, likewise.
    """

    gates: Tensor
    hidden: Tensor
    cell: Tensor
    squashed: Tensor
    input_chain: list[Tensor]
    hidden_chain: list[Tensor]


def run(
    inputs: Tensor, hidden: Tensor, cell: Tensor, offset: Tensor, from_inputs: Projection, from_hidden: Projection
) -> Run:
    """Run over a sequence, without a graph.

    Args:
        inputs: `(time, batch, in)`.
        hidden: initial hidden state, `(batch, hidden)`.
        cell: initial cell state, `(batch, hidden)`.
        offset: what is added to the gates at every step, `(batch, 4 * hidden)` or broadcast to it.
        from_inputs: the projection of the inputs.
        from_hidden: the projection of the hidden state.
    """
    (time, batch, _), size = inputs.shape, hidden.shape[-1]
    gates, squashed = inputs.new_empty(time, batch, 4 * size), inputs.new_empty(time, batch, size)
    hiddens, cells = inputs.new_empty(2, time + 1, batch, size).unbind()
    hiddens[0], cells[0] = hidden, cell
    hidden_chain = [hiddens[:-1], *(inputs.new_empty(time, batch, len(factor)) for factor in from_hidden.factors)]
    input_chain = [inputs]
    for factor in from_inputs.factors:
        input_chain.append(input_chain[-1] @ factor.t())
    if from_inputs.unit is None:
        gates.copy_(offset)
    else:
        torch.addcmul(offset, input_chain[-1], from_inputs.unit, out=gates)
    if from_inputs.weight is not None:
        flat = gates.flatten(0, 1)
        torch.addmm(flat, inputs.flatten(0, 1), from_inputs.weight.t(), out=flat)

    # Views for all steps at once: in a small batch, slicing costs as much as arithmetic.
    weight = None if from_hidden.weight is None else from_hidden.weight.t()
    factors = [(factor.t(), out.unbind()) for factor, out in zip(from_hidden.factors, hidden_chain[1:], strict=True)]
    first_two = gates[..., : 2 * size].unbind()
    admit, forget, new, emit = (gate.unbind() for gate in gates.chunk(4, -1))
    h, c, s = hiddens.unbind(), cells.unbind(), squashed.unbind()
    for t, gate in enumerate(gates.unbind()):
        value = h[t]
        if weight is not None:
            torch.addmm(gate, value, weight, out=gate)
        for factor, out in factors:
            value = torch.mm(value, factor, out=out[t])
        if from_hidden.unit is not None:
            gate.addcmul_(value, from_hidden.unit)
        first_two[t].sigmoid_()
        new[t].tanh_()
        emit[t].sigmoid_()
        torch.mul(forget[t], c[t], out=c[t + 1]).addcmul_(admit[t], new[t])
        torch.mul(emit[t], torch.tanh(c[t + 1], out=s[t]), out=h[t + 1])
    return Run(gates, hiddens, cells, squashed, input_chain, hidden_chain)


def lstm(
    inputs: Tensor, hidden: Tensor, cell: Tensor, offset: Tensor, from_inputs: Projection, from_hidden: Projection
) -> tuple[Tensor, Tensor]:
    """As `run`, with gradients to everything; gives the hidden states `(time, batch, hidden)` and the last cell state.

    Here `offset` has the shape `(batch, 4 * hidden)` and a unit that of one for each example.
    """
    tapes: list[list[Tensor]] = []
    parts: list[Tensor | None] = []
    for side in (from_inputs, from_hidden):
        parts.append(side.unit)
        for weight in (side.weight, *side.factors):
            tapes.append([])
            parts.append(None if weight is None else _WeightGradient.apply(weight, tapes[-1]))  # type: ignore[no-untyped-call]
    split = 2 + len(from_inputs.factors)
    outputs = _LSTM.apply(tapes, split, inputs, hidden, cell, offset, *parts)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], outputs)


class _LSTM(Function):
    @staticmethod
    def forward(
        ctx: Any,
        tapes: list[list[Tensor]],
        split: int,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        offset: Tensor,
        *parts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        result = run(inputs, hidden, cell, offset, *_sides(parts, split))
        ctx.tapes, ctx.split, ctx.parts = tapes, split, len(parts)
        ctx.save_for_backward(*parts, *result[:4], *result.input_chain, *result.hidden_chain[1:])
        return result.hidden[1:], result.cell[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_cell: Tensor) -> tuple[Tensor | None, ...]:
        parts, (gates, hidden, cell, squashed, *values) = ctx.saved_tensors[: ctx.parts], ctx.saved_tensors[ctx.parts :]
        from_inputs, from_hidden = _sides(parts, ctx.split)
        input_chain = values[: 1 + len(from_inputs.factors)]
        hidden_chain = [hidden[:-1], *values[len(input_chain) :]]

        slopes = _slopes(gates, cell, squashed)
        of_hidden_chain = [torch.empty_like(value) for value in hidden_chain[1:]]
        of_state = _adjoint(slopes, of_hidden, of_cell, from_hidden, of_hidden_chain)
        gradient = slopes.gates
        of_input_chain = [] if from_inputs.unit is None else [gradient * from_inputs.unit]
        for factor in from_inputs.factors[:0:-1]:
            of_input_chain.insert(0, of_input_chain[0] @ factor)
        of_inputs = None
        if ctx.needs_input_grad[2]:
            terms = [(gradient, from_inputs.weight), *zip(of_input_chain, from_inputs.factors, strict=True)][:2]
            of_inputs = _product(*((left.flatten(0, 1), right) for left, right in terms if right is not None))
            of_inputs = of_inputs.view_as(input_chain[0])

        tapes = iter(ctx.tapes)
        of_parts: list[Tensor | None] = [None] * ctx.parts
        for place, side, of_chain, chain in (
            (0, from_inputs, of_input_chain, input_chain),
            (ctx.split, from_hidden, of_hidden_chain, hidden_chain),
        ):
            if side.unit is not None:
                of_parts[place] = _over_time(gradient, chain[-1])
            next(tapes)[:] = gradient, chain[0]
            for pair in zip(of_chain, chain[:-1], strict=True):
                next(tapes)[:] = pair
        return None, None, of_inputs, *of_state, gradient.sum(0), *of_parts


class _Slopes(NamedTuple):
    """First derivatives of a run.

    Attributes:
        gates: what a change of a gate, before its sigmoid or tanh, does: the first three to the cell state, the last to
            the hidden state.
        kept: what a change of a cell state does to the next one: the forget gates.
        shown: what it does to the hidden state of its own step.
    """

    gates: Tensor
    kept: Tensor
    shown: Tensor


def _slopes(gates: Tensor, cell: Tensor, squashed: Tensor) -> _Slopes:
    admit, forget, new, emit = gates.chunk(4, -1)
    slopes = _Slopes(torch.empty_like(gates), forget, torch.empty_like(squashed))
    of_admit, of_forget, of_new, of_emit = slopes.gates.chunk(4, -1)
    _sigmoid_backward(new, admit, grad_input=of_admit)
    _sigmoid_backward(cell[:-1], forget, grad_input=of_forget)
    _tanh_backward(admit, new, grad_input=of_new)
    _sigmoid_backward(squashed, emit, grad_input=of_emit)
    _tanh_backward(emit, squashed, grad_input=slopes.shown)
    return slopes


def _adjoint(
    slopes: _Slopes, of_hidden: Tensor, of_cell: Tensor, from_hidden: Projection, of_chain: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Carry gradients back through time.

    Args:
        slopes: of the run; those of the gates are overwritten with the gradient of the gates.
        of_hidden: gradient of all hidden states, `(time, batch, hidden)`.
        of_cell: gradient of the last cell state.
        from_hidden: the projection of the hidden state.
        of_chain: filled with the gradient of each factor's output.

    Returns:
        The gradients of the initial hidden and cell state.
    """
    time, batch, size = slopes.shown.shape
    gates = slopes.gates.unbind()
    first_three = slopes.gates.view(time, batch, 4, size)[:, :, :3].unbind()
    emit = slopes.gates[..., 3 * size :].unbind()
    kept, shown, before = slopes.kept.unbind(), slopes.shown.unbind(), of_hidden.unbind()
    outputs = [out.unbind() for out in of_chain]
    inner = list(zip(from_hidden.factors[:0:-1], outputs[-2::-1], strict=True))
    nothing, h, c = torch.zeros_like(shown[0]), before[-1].clone(), of_cell.clone()
    each = c[:, None]
    for t in range(time - 1, -1, -1):
        c.addcmul_(h, shown[t])
        first_three[t].mul_(each)
        emit[t].mul_(h)
        c.mul_(kept[t])
        total = before[t - 1] if t else nothing
        if from_hidden.weight is not None:
            total = torch.addmm(total, gates[t], from_hidden.weight, out=h)
        if from_hidden.unit is not None:
            value = torch.mul(gates[t], from_hidden.unit, out=outputs[-1][t])
            for factor, out in inner:
                value = torch.mm(value, factor, out=out[t])
            torch.addmm(total, value, from_hidden.factors[0], out=h)
    return h, c


def tangents(result: Run, weight: Tensor, entering: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """First-order change of the hidden states and of the last cell state of a run.

    Gradients go to the three changes that cause it; the run and `weight` are constants.

    Args:
        result: the run.
        weight: of the hidden state, `(4 * hidden, hidden)`.
        entering: change of the gates at every step, but for what comes through the hidden state.
        hidden: change of the initial hidden state.
        cell: change of the initial cell state.
    """
    slopes = _slopes(result.gates, result.cell, result.squashed)
    return cast(tuple[Tensor, Tensor], _Tangents.apply(*slopes, weight, entering, hidden, cell))  # type: ignore[no-untyped-call]


class _Tangents(Function):
    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        kept: Tensor,
        shown: Tensor,
        weight: Tensor,
        entering: Tensor,
        hidden: Tensor,
        cell: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(gates, kept, shown, weight)
        changes, change, c, transposed = torch.empty_like(shown), torch.empty_like(gates[0]), cell.clone(), weight.t()
        *first_three, emit = change.chunk(4, -1)
        for given, slope, keep, show, out in zip(
            *(sequence.unbind() for sequence in (entering, gates, kept, shown, changes)), strict=True
        ):
            torch.addmm(given, hidden, transposed, out=change).mul_(slope)
            c.mul_(keep)
            for gate in first_three:
                c.add_(gate)
            hidden = torch.addcmul(emit, c, show, out=out)
        return changes, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_cell: Tensor) -> tuple[Tensor | None, ...]:
        gates, kept, shown, weight = ctx.saved_tensors
        slopes = _Slopes(gates.clone(), kept, shown)
        of_state = _adjoint(slopes, of_hidden, of_cell, Projection(weight), ())
        return None, None, None, None, slopes.gates, *of_state


class _WeightGradient(Function):
    """The weight itself; its gradient is made here, and only where somebody asks for it.

    Torch leaves out a node that leads to nothing asked for, but tells no node which of its gradients are. The tape
    holds, once the recurrence has gone back through time, the two sequences of which the gradient is the product.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tape: list[Tensor]) -> Tensor:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None) -> tuple[Tensor, None]:
        left, right = ctx.tape
        return _product((left.flatten(0, 1).t(), right.flatten(0, 1))), None


def _sides(parts: Sequence[Any], split: int) -> tuple[Projection, Projection]:
    """The projections of the inputs and of the hidden state, of which the first has `split` parts."""
    first, second = (
        Projection(weight, tuple(factors), unit) for unit, weight, *factors in (parts[:split], parts[split:])
    )
    return first, second


def _product(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of `left @ right`.

    MKL takes half as long again where the width of a result is no multiple of 8, so there it is made transposed.
    """
    turned = terms[0][0].device.type == "cpu" and terms[0][1].shape[1] % 8 != 0
    pairs = [(right.t(), left.t()) if turned else (left, right) for left, right in terms]
    total = torch.mm(*pairs[0])
    for left, right in pairs[1:]:
        torch.addmm(total, left, right, out=total)
    return total.t().contiguous() if turned else total


def _over_time(left: Tensor, right: Tensor) -> Tensor:
    """Sum of `left * right` over the steps; on a CPU step by step, where a buffer for all products is dear."""
    if left.device.type != "cpu":
        return (left * right).sum(0)
    total = torch.zeros_like(left[0])
    for one, other in zip(left.unbind(), right.unbind(), strict=True):
        total.addcmul_(one, other)
    return total
