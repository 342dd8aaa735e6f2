"""What an LSTM does one step after the other: forward, back through time, and along a change.

Sequences are time-major, as in `lstm.kernel`, which calls these loops and does all else for all steps at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """What an input, or the hidden state, gives to the gates: `weight x + unit * (M_k ... M_1 x)`.

    Attributes:
        weight: Matrix of shape `(4 * hidden, in)`, or None for no such term.
        factors: M_1 to M_k, the last with `4 * hidden` rows; empty for no such term.
        unit: Factors of shape `(batch, 4 * hidden)`, or broadcast to it; given with `factors` only. Default None.
    """

    weight: Tensor | None
    factors: tuple[Tensor, ...] = ()
    unit: Tensor | None = None


class States(NamedTuple):
    """What the way forward leaves behind.

    Attributes:
        gates: Gates after their sigmoid or tanh, shape `(time, batch, 4 * hidden)`.
        hidden: Hidden states from the initial one on, shape `(time + 1, batch, hidden)`.
        cell: Cell states from the initial one on, shape `(time + 1, batch, hidden)`.
        tanh_cell: The tanh of all cell states but the initial one, shape `(time, batch, hidden)`.
        chain: What each factor of the hidden state's projection made of all hidden states but the last.
    """

    gates: Tensor
    hidden: Tensor
    cell: Tensor
    tanh_cell: Tensor
    chain: list[Tensor]


class Slopes(NamedTuple):
    """First derivatives of a run.

    Attributes:
        gates: What a change of a gate, before its sigmoid or tanh, does: the first three to the cell state, the last to
            the hidden state.
        to_cell: What a change of a cell state does to the next one: the forget gates.
        to_hidden: What a change of a cell state does to the hidden state of its own step.
    """

    gates: Tensor
    to_cell: Tensor
    to_hidden: Tensor


class Gradients(NamedTuple):
    """What the way back gives.

    Attributes:
        gates: Gradient with respect to the gates before their sigmoid or tanh.
        chain: Gradient with respect to each factor's output.
        hidden: Gradient with respect to the initial hidden state.
        cell: Gradient with respect to the initial cell state.
    """

    gates: Tensor
    chain: list[Tensor]
    hidden: Tensor
    cell: Tensor


class Recurrence(Protocol):
    """The loops over time. Nothing here makes a graph."""

    def forward(self, gates: Tensor, hidden: Tensor, cell: Tensor, from_hidden: Projection) -> States:
        """Run over a sequence.

        Args:
            gates: Gates without what the hidden state gives them, shape `(time, batch, 4 * hidden)`; may be
                overwritten.
            hidden: Initial hidden state, shape `(batch, hidden)`.
            cell: Initial cell state, shape `(batch, hidden)`.
            from_hidden: The projection of the hidden state.
        """
        ...

    def backward(self, slopes: Slopes, of_hidden: Tensor, of_cell: Tensor, from_hidden: Projection) -> Gradients:
        """Carry gradients back through time.

        Args:
            slopes: First derivatives of the run; those of the gates may be overwritten.
            of_hidden: Gradient with respect to all hidden states, shape `(time, batch, hidden)`.
            of_cell: Gradient with respect to the last cell state, shape `(batch, hidden)`.
            from_hidden: The projection of the hidden state.
        """
        ...

    def tangents(
        self, slopes: Slopes, weight: Tensor, entering: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        """First-order change of all hidden states and of the last cell state.

        Args:
            slopes: First derivatives of the run.
            weight: Weight of the hidden state, shape `(4 * hidden, hidden)`.
            entering: Change of the gates at every step, without what comes through the hidden state, shape `(time,
                batch, 4 * hidden)`.
            hidden: Change of the initial hidden state, shape `(batch, hidden)`.
            cell: Change of the initial cell state, shape `(batch, hidden)`.
        """
        ...


class InPlace:
    """For a CPU: each step writes to buffers made once."""

    def forward(self, gates: Tensor, hidden: Tensor, cell: Tensor, from_hidden: Projection) -> States:
        time, batch, size = len(gates), *hidden.shape
        tanh_cell = gates.new_empty(time, batch, size)
        hiddens, cells = gates.new_empty(2, time + 1, batch, size).unbind()
        hiddens[0], cells[0] = hidden, cell
        chain = [gates.new_empty(time, batch, len(factor)) for factor in from_hidden.factors]
        # Views for all steps at once: in a small batch, slicing costs as much as arithmetic.
        weight = None if from_hidden.weight is None else from_hidden.weight.t()
        factors = [(factor.t(), out.unbind()) for factor, out in zip(from_hidden.factors, chain, strict=True)]
        first_two = gates[..., : 2 * size].unbind()
        i, f, g, o = (gate.unbind() for gate in gates.chunk(4, -1))
        h, c, s = hiddens.unbind(), cells.unbind(), tanh_cell.unbind()
        for t, gate in enumerate(gates.unbind()):
            value = h[t]
            if weight is not None:
                torch.addmm(gate, value, weight, out=gate)
            for factor, out in factors:
                value = torch.mm(value, factor, out=out[t])
            if from_hidden.unit is not None:
                gate.addcmul_(value, from_hidden.unit)
            first_two[t].sigmoid_()
            g[t].tanh_()
            o[t].sigmoid_()
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            torch.mul(o[t], torch.tanh(c[t + 1], out=s[t]), out=h[t + 1])
        return States(gates, hiddens, cells, tanh_cell, chain)

    def backward(self, slopes: Slopes, of_hidden: Tensor, of_cell: Tensor, from_hidden: Projection) -> Gradients:
        time, batch, size = slopes.to_hidden.shape
        chain = [of_hidden.new_empty(time, batch, len(factor)) for factor in from_hidden.factors]
        gates = slopes.gates.unbind()
        first_three = slopes.gates.view(time, batch, 4, size)[:, :, :3].unbind()
        o = slopes.gates[..., 3 * size :].unbind()
        to_cell, to_hidden, before = (
            slopes.to_cell.unbind(),
            slopes.to_hidden.unbind(),
            of_hidden.unbind(),
        )
        outputs = [out.unbind() for out in chain]
        inner = list(zip(from_hidden.factors[:0:-1], outputs[-2::-1], strict=True))
        nothing, h, c = torch.zeros_like(to_hidden[0]), before[-1].clone(), of_cell.clone()
        each = c[:, None]
        for t in range(time - 1, -1, -1):
            c.addcmul_(h, to_hidden[t])
            first_three[t].mul_(each)
            o[t].mul_(h)
            c.mul_(to_cell[t])
            total = before[t - 1] if t else nothing
            if from_hidden.weight is not None:
                total = torch.addmm(total, gates[t], from_hidden.weight, out=h)
            if from_hidden.unit is not None:
                value = torch.mul(gates[t], from_hidden.unit, out=outputs[-1][t])
                for factor, out in inner:
                    value = torch.mm(value, factor, out=out[t])
                torch.addmm(total, value, from_hidden.factors[0], out=h)
        return Gradients(slopes.gates, chain, h, c)

    def tangents(
        self, slopes: Slopes, weight: Tensor, entering: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        changes, change, c = torch.empty_like(slopes.to_hidden), torch.empty_like(slopes.gates[0]), cell.clone()
        transposed = weight.t()
        *first_three, o = change.chunk(4, -1)
        for given, slope, keep, show, out in zip(
            *(sequence.unbind() for sequence in (entering, *slopes, changes)), strict=True
        ):
            torch.addmm(given, hidden, transposed, out=change).mul_(slope)
            c.mul_(keep)
            for gate in first_three:
                c.add_(gate)
            hidden = torch.addcmul(o, c, show, out=out)
        return changes, c


IN_PLACE: Recurrence = InPlace()
