"""An LSTM whose projections differ from example to example, with derivatives written by hand.

Sequences are time-major: inputs `(time, batch, in)`, hidden states `(time, batch, hidden)`, gates
`(time, batch, 4 * hidden)` in torch's order input, forget, cell, output.

Speed comes from three things: what does not depend on the hidden state is one product for all time steps, and so is the
gradient of a weight; what does, is left to a `Recurrence` made for the device; and a weight's gradient is a node of its
own in the graph, so that a hyper-step, which asks for none, pays for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tune_stn.nn.lstm.recurrence import IN_PLACE, Projection, Recurrence, Slopes

# Both are `(gradient of the output, output) -> gradient of the input`, in one pass.
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class Unrolled(NamedTuple):
    """All that a run over a sequence leaves behind.

    Attributes:
        gates: Gates after their sigmoid or tanh, shape `(time, batch, 4 * hidden)`.
        hidden: Hidden states from the initial one on, shape `(time + 1, batch, hidden)`.
        cell: Cell states from the initial one on, shape `(time + 1, batch, hidden)`.
        tanh_cell: The tanh of all cell states but the initial one, shape `(time, batch, hidden)`.
        input_chain: The inputs, and what each factor of their projection made of them.
        hidden_chain: The hidden states but the last, and what each factor of their projection made of them.
    """

    gates: Tensor
    hidden: Tensor
    cell: Tensor
    tanh_cell: Tensor
    input_chain: list[Tensor]
    hidden_chain: list[Tensor]


def unroll(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    offset: Tensor,
    from_inputs: Projection,
    from_hidden: Projection,
    *,
    recurrence: Recurrence = IN_PLACE,
) -> Unrolled:
    """Run over a sequence, without a graph.

    Args:
        inputs: `(time, batch, in)`.
        hidden: Initial hidden state, shape `(batch, hidden)`.
        cell: Initial cell state, shape `(batch, hidden)`.
        offset: Term added to the gates at every step, shape `(batch, 4 * hidden)` or broadcast to it.
        from_inputs: The projection of the inputs.
        from_hidden: The projection of the hidden state.
        recurrence: Implementation of the loop over time. Default one that works in place.
    """
    gates = inputs.new_empty(*inputs.shape[:2], 4 * hidden.shape[-1])
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
    states = recurrence.forward(gates, hidden, cell, from_hidden)
    return Unrolled(*states[:4], input_chain, [states.hidden[:-1], *states.chain])


def lstm(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    offset: Tensor,
    from_inputs: Projection,
    from_hidden: Projection,
    *,
    recurrence: Recurrence = IN_PLACE,
) -> tuple[Tensor, Tensor]:
    """As `unroll`, with gradients to everything: the hidden states `(time, batch, hidden)` and the last cell state.

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
    outputs = _LSTM.apply(recurrence, tapes, split, inputs, hidden, cell, offset, *parts)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], outputs)


class _LSTM(Function):
    @staticmethod
    def forward(
        ctx: Any,
        recurrence: Recurrence,
        tapes: list[list[Tensor]],
        split: int,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        offset: Tensor,
        *parts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        result = unroll(inputs, hidden, cell, offset, *_sides(parts, split), recurrence=recurrence)
        ctx.recurrence, ctx.tapes, ctx.split, ctx.parts = recurrence, tapes, split, len(parts)
        ctx.save_for_backward(*parts, *result[:4], *result.input_chain, *result.hidden_chain[1:])
        return result.hidden[1:], result.cell[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_cell: Tensor) -> tuple[Tensor | None, ...]:
        parts, (gates, hidden, cell, tanh_cell, *values) = (
            ctx.saved_tensors[: ctx.parts],
            ctx.saved_tensors[ctx.parts :],
        )
        from_inputs, from_hidden = _sides(parts, ctx.split)
        input_chain = values[: 1 + len(from_inputs.factors)]
        hidden_chain = [hidden[:-1], *values[len(input_chain) :]]

        slopes = _slopes(gates, cell, tanh_cell)
        gradient, of_hidden_chain, *of_state = ctx.recurrence.backward(slopes, of_hidden, of_cell, from_hidden)
        of_input_chain = [] if from_inputs.unit is None else [gradient * from_inputs.unit]
        for factor in from_inputs.factors[:0:-1]:
            of_input_chain.insert(0, of_input_chain[0] @ factor)
        of_inputs = None
        if ctx.needs_input_grad[3]:
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
        return None, None, None, of_inputs, *of_state, gradient.sum(0), *of_parts


def _slopes(gates: Tensor, cell: Tensor, tanh_cell: Tensor) -> Slopes:
    i, f, g, o = gates.chunk(4, -1)
    slopes = Slopes(torch.empty_like(gates), f, torch.empty_like(tanh_cell))
    of_i, of_f, of_g, of_o = slopes.gates.chunk(4, -1)
    _sigmoid_backward(g, i, grad_input=of_i)
    _sigmoid_backward(cell[:-1], f, grad_input=of_f)
    _tanh_backward(i, g, grad_input=of_g)
    _sigmoid_backward(tanh_cell, o, grad_input=of_o)
    _tanh_backward(o, tanh_cell, grad_input=slopes.to_hidden)
    return slopes


def tangents(
    result: Unrolled,
    weight: Tensor,
    entering: Tensor,
    hidden: Tensor,
    cell: Tensor,
    *,
    recurrence: Recurrence = IN_PLACE,
) -> tuple[Tensor, Tensor]:
    """First-order change of the hidden states and of the last cell state of a run.

    Gradients go to the three changes that cause it; the run and `weight` are constants.

    Args:
        result: The run to differentiate.
        weight: Weight of the hidden state, shape `(4 * hidden, hidden)`.
        entering: Change of the gates at every step, without what comes through the hidden state, shape `(time, batch, 4
            * hidden)`.
        hidden: Change of the initial hidden state, shape `(batch, hidden)`.
        cell: Change of the initial cell state, shape `(batch, hidden)`.
        recurrence: Implementation of the loop over time. Default one that works in place.
    """
    slopes = _slopes(result.gates, result.cell, result.tanh_cell)
    outputs = _Tangents.apply(recurrence, *slopes, weight, entering, hidden, cell)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], outputs)


class _Tangents(Function):
    @staticmethod
    def forward(
        ctx: Any,
        recurrence: Recurrence,
        gates: Tensor,
        to_cell: Tensor,
        to_hidden: Tensor,
        weight: Tensor,
        *changes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.recurrence = recurrence
        ctx.save_for_backward(gates, to_cell, to_hidden, weight)
        return recurrence.tangents(Slopes(gates, to_cell, to_hidden), weight, *changes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_cell: Tensor) -> tuple[Tensor | None, ...]:
        gates, to_cell, to_hidden, weight = ctx.saved_tensors
        slopes = Slopes(gates.clone(), to_cell, to_hidden)
        of_gates, _, *of_state = ctx.recurrence.backward(slopes, of_hidden, of_cell, Projection(weight))
        return *(None,) * 5, of_gates, *of_state


class _WeightGradient(Function):
    """The weight itself; its gradient is made here, and only where it is asked for.

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
    """Sum of `left * right` over the steps; on a CPU step by step, where a buffer for all products is expensive."""
    if left.device.type != "cpu":
        return (left * right).sum(0)
    total = torch.zeros_like(left[0])
    for one, other in zip(left.unbind(), right.unbind(), strict=True):
        total.addcmul_(one, other)
    return total
