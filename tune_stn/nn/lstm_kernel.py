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
        hidden, cell: from the initial state on, `(time + 1, batch, hidden)`.
        squashed: tanh of the new cell states.
        of_inputs, of_hidden: inputs of each factor of the two projections, and at the end the output of the last one.
    """

    gates: Tensor
    hidden: Tensor
    cell: Tensor
    squashed: Tensor
    of_inputs: tuple[Tensor, ...]
    of_hidden: tuple[Tensor, ...]


def run(
    inputs: Tensor, hidden: Tensor, cell: Tensor, offset: Tensor, from_inputs: Projection, from_hidden: Projection
) -> Run:
    """Run over a sequence, without a graph.

    Args:
        inputs: `(time, batch, in)`.
        hidden: initial hidden state, `(batch, hidden)`.
        cell: initial cell state, `(batch, hidden)`.
        offset: all that is added to the gates at every step, broadcast to `(batch, 4 * hidden)`.
        from_inputs: the projection of the inputs.
        from_hidden: the projection of the hidden state.
    """
    time, batch, _ = inputs.shape
    size = hidden.shape[-1]
    gates, squashed = inputs.new_empty(time, batch, 4 * size), inputs.new_empty(time, batch, size)
    hiddens, cells = (torch.cat((state[None], squashed)) for state in (hidden, cell))  # all but the first overwritten
    of_inputs = [inputs]
    for factor in from_inputs.factors:
        of_inputs.append(of_inputs[-1] @ factor.t())
    of_hidden = [hiddens[:-1], *(inputs.new_empty(time, batch, len(factor)) for factor in from_hidden.factors)]

    if from_inputs.unit is None:
        gates.copy_(offset)
    else:
        torch.addcmul(offset, of_inputs[-1], from_inputs.unit, out=gates)
    if from_inputs.weight is not None:
        flat = gates.flatten(0, 1)
        torch.addmm(flat, inputs.flatten(0, 1), from_inputs.weight.t(), out=flat)

    # Views for all steps at once: a step that sliced for itself would spend a third of its time on it.
    weight = None if from_hidden.weight is None else from_hidden.weight.t()
    factors = [(factor.t(), out.unbind()) for factor, out in zip(from_hidden.factors, of_hidden[1:], strict=True)]
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
    return Run(gates, hiddens, cells, squashed, tuple(of_inputs), tuple(of_hidden))


def lstm(
    inputs: Tensor, hidden: Tensor, cell: Tensor, offset: Tensor, from_inputs: Projection, from_hidden: Projection
) -> tuple[Tensor, Tensor]:
    """As `run`, with gradients to everything; gives the hidden states `(time, batch, hidden)` and the last cell state.

    `offset` has the shape `(batch, 4 * hidden)` here.
    """
    tapes: list[_Tape] = []
    parts: list[Tensor | None] = []
    for side in (from_inputs, from_hidden):
        parts.append(side.unit)
        for weight in (side.weight, *side.factors):
            tapes.append(_Tape())
            parts.append(None if weight is None else _WeightGradient.apply(weight, tapes[-1]))  # type: ignore[no-untyped-call]
    split = 2 + len(from_inputs.factors)
    return cast(
        tuple[Tensor, Tensor],
        _LSTM.apply(tapes, split, inputs, hidden, cell, offset, *parts),
    )


class _LSTM(Function):
    @staticmethod
    def forward(
        ctx: Any,
        tapes: list[_Tape],
        split: int,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        offset: Tensor,
        *parts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        result = run(inputs, hidden, cell, offset, *_sides(parts, split))
        ctx.tapes, ctx.split, ctx.parts = tapes, split, len(parts)
        ctx.save_for_backward(*parts, *result[:4], *result.of_inputs, *result.of_hidden[1:])
        return result.hidden[1:], result.cell[-1].clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_hidden: Tensor, of_cell: Tensor) -> tuple[Tensor | None, ...]:
        parts, (gates, hidden, cell, squashed, *values) = ctx.saved_tensors[: ctx.parts], ctx.saved_tensors[ctx.parts :]
        from_inputs, from_hidden = _sides(parts, ctx.split)
        inputs = values[: 1 + len(from_inputs.factors)]
        hiddens = [hidden[:-1], *values[len(inputs) :]]

        gradient, forget, through = slopes(gates, cell, squashed)
        of_hiddens = [torch.empty_like(value) for value in hiddens[1:]]
        of_state = _adjoint(gradient, forget, through, of_hidden, of_cell, from_hidden, of_hiddens)
        of_inputs = [] if from_inputs.unit is None else [gradient * from_inputs.unit]
        for factor in from_inputs.factors[:0:-1]:
            of_inputs.insert(0, of_inputs[0] @ factor)

        tapes = iter(ctx.tapes)
        for of_outputs, sources in ((of_inputs, inputs), (of_hiddens, hiddens)):
            next(tapes).fill(gradient, sources[0])
            for left, right in zip(of_outputs, sources[:-1], strict=True):
                next(tapes).fill(left, right)
        of_units = [
            None if side.unit is None else _over_time(gradient, sources[-1])
            for side, sources in ((from_inputs, inputs), (from_hidden, hiddens))
        ]
        of_source = None
        if ctx.needs_input_grad[2]:
            terms = [(gradient, from_inputs.weight), *zip(of_inputs, from_inputs.factors, strict=True)][:2]
            of_source = _product(*((left.flatten(0, 1), right) for left, right in terms if right is not None))
            of_source = of_source.view_as(inputs[0])
        nothing = [None] * ctx.parts
        return (
            *(None, None, of_source, *of_state, gradient.sum(0)),
            *(of_units[0], *nothing[1 : ctx.split], of_units[1], *nothing[ctx.split + 1 :]),
        )


def slopes(gates: Tensor, cell: Tensor, squashed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First derivatives of a run: what a change of each gate (before its sigmoid or tanh) does.

    Returns:
        Of the gates, `(time, batch, 4 * hidden)`: the first three change the cell, the last the hidden state; the
        forget gates, by which a change of a cell goes on to the next; what a change of a cell does to the hidden state.
    """
    admit, forget, new, emit = gates.chunk(4, -1)
    result, through = torch.empty_like(gates), torch.empty_like(squashed)
    of_admit, of_forget, of_new, of_emit = result.chunk(4, -1)
    _sigmoid_backward(new, admit, grad_input=of_admit)
    _sigmoid_backward(cell[:-1], forget, grad_input=of_forget)
    _tanh_backward(admit, new, grad_input=of_new)
    _sigmoid_backward(squashed, emit, grad_input=of_emit)
    _tanh_backward(emit, squashed, grad_input=through)
    return result, forget, through


def _adjoint(
    gradient: Tensor,
    forget: Tensor,
    through: Tensor,
    of_hidden: Tensor,
    of_cell: Tensor,
    from_hidden: Projection,
    of_factors: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Carry gradients back through time.

    Args:
        gradient: slopes of the gates; overwritten with the gradient of the gates.
        forget: as from `slopes`.
        through: as from `slopes`.
        of_hidden: gradient of all hidden states, `(time, batch, hidden)`.
        of_cell: gradient of the last cell state.
        from_hidden: the projection of the hidden state.
        of_factors: filled with the gradient of each factor's output.

    Returns:
        The gradients of the initial hidden and cell state.
    """
    time, batch, size = through.shape
    first_three = gradient.view(time, batch, 4, size)[:, :, :3].unbind()
    emit = gradient[..., 3 * size :].unbind()
    outputs = [out.unbind() for out in of_factors]
    inner = list(zip(from_hidden.factors[:0:-1], outputs[-2::-1], strict=True))
    steps, before = list(zip(gradient.unbind(), forget.unbind(), through.unbind(), strict=True)), of_hidden.unbind()
    nothing, h, c = torch.zeros_like(through[0]), before[-1].clone(), of_cell.clone()
    each = c[:, None]
    for t in range(time - 1, -1, -1):
        gate, kept, slope = steps[t]
        c.addcmul_(h, slope)
        first_three[t].mul_(each)
        emit[t].mul_(h)
        c.mul_(kept)
        total = before[t - 1] if t else nothing
        if from_hidden.weight is not None:
            total = torch.addmm(total, gate, from_hidden.weight, out=h)
        if from_hidden.unit is not None:
            value = torch.mul(gate, from_hidden.unit, out=outputs[-1][t])
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
    derivatives = slopes(result.gates, result.cell, result.squashed)
    return cast(
        tuple[Tensor, Tensor],
        _Tangents.apply(*derivatives, weight, entering, hidden, cell),  # type: ignore[no-untyped-call]
    )


class _Tangents(Function):
    @staticmethod
    def forward(
        ctx: Any,
        slope: Tensor,
        forget: Tensor,
        through: Tensor,
        weight: Tensor,
        entering: Tensor,
        hidden: Tensor,
        cell: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(slope, forget, through, weight)
        changes, gates, c = through.new_empty(through.shape), torch.empty_like(slope[0]), cell.clone()
        *first_three, emit = gates.chunk(4, -1)
        transposed, h = weight.t(), hidden
        for into, given, out, *factors in zip(
            slope.unbind(), entering.unbind(), changes.unbind(), forget.unbind(), through.unbind(), strict=True
        ):
            torch.addmm(given, h, transposed, out=gates).mul_(into)
            c.mul_(factors[0])
            for gate in first_three:
                c.add_(gate)
            h = torch.addcmul(emit, c, factors[1], out=out)
        return changes, c

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_hidden: Tensor, of_cell: Tensor) -> tuple[Tensor | None, ...]:
        slope, forget, through, weight = ctx.saved_tensors
        gradient = slope.clone()
        of_state = _adjoint(gradient, forget, through, of_hidden, of_cell, Projection(weight), ())
        return None, None, None, None, gradient, *of_state


class _Tape:
    """Leaves for a weight the two sequences of which its gradient is the product."""

    left: Tensor
    right: Tensor

    def fill(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right


class _WeightGradient(Function):
    """The weight itself; its gradient is made here, from the tape, only where somebody asks for it.

    Torch leaves out a node that leads to nothing asked for, but tells no node which of its gradients are.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tape: _Tape) -> Tensor:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, _: None) -> tuple[Tensor, None]:
        return _product((ctx.tape.left.flatten(0, 1).t(), ctx.tape.right.flatten(0, 1))), None


def _sides(parts: Sequence[Any], split: int) -> tuple[Projection, Projection]:
    """The projections of the inputs and of the hidden state, of which the first has `split` parts."""
    first, second = (
        Projection(weight, tuple(factors), unit) for unit, weight, *factors in (parts[:split], parts[split:])
    )
    return first, second


def _product(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of `left @ right`.

    MKL is half as slow again where the width of a result is no multiple of 8, so there it is made transposed.
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
