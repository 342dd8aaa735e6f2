"""The loops of an LSTM over time for a GPU, replayed as CUDA graphs.

A step of a usual size is too small to keep a GPU busy: what counts is how many kernels it takes, and who starts them.
Here it is one product, with the matrices of a step stacked, and one kernel for all that is done element by element
where `fuse` makes it one; and a whole loop is recorded once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tune_stn.nn.cuda_graph import GraphedFunction
from tune_stn.nn.lstm.recurrence import Gradients, Projection, Slopes, States


class Graphed:
    """A `Recurrence` of recorded loops.

    Args:
        fuse: Function that makes one kernel of a function of element-wise operations, as `torch.compile` does; None
            leaves them separate.
    """

    def __init__(self, fuse: Callable[..., Any] | None = None) -> None:
        steps: tuple[Any, ...] = (_step, _step_back, _step_along)
        self._step, self._step_back, self._step_along = steps if fuse is None else map(fuse, steps)
        self._forward = GraphedFunction(self._forward_loop)
        self._backward = GraphedFunction(self._backward_loop)
        self._tangents = GraphedFunction(self._tangents_loop)

    def __deepcopy__(self, memo: object) -> Graphed:
        return self  # of a model it holds nothing

    def forward(self, gates: Tensor, hidden: Tensor, cell: Tensor, from_hidden: Projection) -> States:
        gates, hidden, cell, tanh_cell, *chain = self._forward(
            gates, hidden, cell, from_hidden.unit, from_hidden.weight, *from_hidden.factors
        )
        return States(gates, hidden, cell, tanh_cell, chain)

    def backward(self, slopes: Slopes, of_hidden: Tensor, of_cell: Tensor, from_hidden: Projection) -> Gradients:
        h, c, gates, *chain = self._backward(
            *slopes, of_hidden, of_cell, from_hidden.unit, from_hidden.weight, *from_hidden.factors
        )
        return Gradients(gates, chain, h, c)

    def tangents(
        self, slopes: Slopes, weight: Tensor, entering: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        changes, c = self._tangents(*slopes, weight, entering, hidden, cell)
        return changes, c

    def _forward_loop(
        self, gates: Tensor, h: Tensor, c: Tensor, unit: Tensor | None, weight: Tensor | None, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        first = [matrix for matrix in (weight, *factors[:1]) if matrix is not None]
        stacked, widths = torch.cat(first).t(), [len(matrix) for matrix in first]
        steps: list[tuple[Tensor, ...]] = []
        hiddens, cells = [h], [c]
        for entering in gates.unbind():
            values = list(torch.split(h @ stacked, widths, -1))
            base = None if weight is None else values.pop(0)
            for factor in factors[1:]:
                values.append(values[-1] @ factor.t())
            gate, tanh_cell, h, c = self._step(entering, base, values[-1] if values else None, unit, c)
            hiddens.append(h)
            cells.append(c)
            steps.append((gate, tanh_cell, *values))
        gate, tanh_cell, *chain = (torch.stack(each) for each in zip(*steps, strict=True))
        return gate, torch.stack(hiddens), torch.stack(cells), tanh_cell, *chain

    def _backward_loop(
        self,
        slopes: Tensor,
        to_cell: Tensor,
        to_hidden: Tensor,
        of_hidden: Tensor,
        c: Tensor,
        unit: Tensor | None,
        weight: Tensor | None,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        stacked = torch.cat([matrix for matrix in (weight, *factors[:1]) if matrix is not None])
        before = of_hidden.unbind()
        h = before[-1]
        steps: list[list[Tensor]] = []
        for t in range(len(before) - 1, -1, -1):
            joint, c = self._step_back(slopes[t], to_cell[t], to_hidden[t], h, c, unit)
            gradient, *chain = torch.split(joint, slopes.shape[-1], -1)
            for factor in factors[:0:-1]:
                chain = [chain[0] @ factor, *chain]
            if len(factors) > 1:  # else it is joint already
                joint = torch.cat([*([] if weight is None else [gradient]), chain[0]], -1)
            elif weight is None:
                joint = chain[0]
            h = torch.addmm(before[t - 1], joint, stacked) if t else joint @ stacked
            steps.append([gradient, *chain])
        return h, c, *(torch.stack(each[::-1]) for each in zip(*steps, strict=True))

    def _tangents_loop(
        self,
        slopes: Tensor,
        to_cell: Tensor,
        to_hidden: Tensor,
        weight: Tensor,
        entering: Tensor,
        h: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, ...]:
        transposed = weight.t()
        changes = []
        for t in range(len(slopes)):
            h, c = self._step_along(entering[t], h @ transposed, slopes[t], to_cell[t], to_hidden[t], c)
            changes.append(h)
        return torch.stack(changes), c


# Steps, element by element ------------------------------------------------------------------------------------------


def _step(
    entering: Tensor, base: Tensor | None, value: Tensor | None, unit: Tensor | None, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gates, tanh of the cell state, hidden state and cell state."""
    total = entering if base is None else entering + base
    if value is not None and unit is not None:
        total = torch.addcmul(total, value, unit)
    i, f, g, o = total.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    tanh_cell = c.tanh()
    return torch.cat([i, f, g, o], -1), tanh_cell, o * tanh_cell, c


def _step_back(
    slope: Tensor, to_cell: Tensor, to_hidden: Tensor, h: Tensor, c: Tensor, unit: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the gates, beside them those of what the unit scales; and of the cell state before."""
    c = torch.addcmul(c, h, to_hidden)
    i, f, g, o = slope.chunk(4, -1)
    gradient = torch.cat([i * c, f * c, g * c, o * h], -1)
    return gradient if unit is None else torch.cat([gradient, gradient * unit], -1), c * to_cell


def _step_along(
    entering: Tensor, product: Tensor, slope: Tensor, to_cell: Tensor, to_hidden: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Changes of the hidden and of the cell state."""
    i, f, g, o = ((entering + product) * slope).chunk(4, -1)
    c = c * to_cell + i + f + g
    return torch.addcmul(o, c, to_hidden), c
