"""The recurrence of an LSTM as it can be read in a minute, in plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tune_stn.nn.lstm.recurrence import IN_PLACE, Projection, Recurrence


@pytest.fixture
def lstm_reference() -> Callable[..., tuple[Tensor, Tensor]]:
    """What `tune_stn.nn.lstm.kernel.lstm` should give."""
    return _reference


def _reference(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    offset: Tensor,
    from_inputs: Projection,
    from_hidden: Projection,
    *,
    recurrence: Recurrence = IN_PLACE,  # not used: it is what this is the reference of
) -> tuple[Tensor, Tensor]:
    def project(side: Projection, value: Tensor) -> Tensor:
        total = torch.zeros_like(offset) if side.weight is None else value @ side.weight.T
        for factor in side.factors:
            value = value @ factor.T
        return total if side.unit is None else total + side.unit * value

    outputs = []
    for x in inputs:
        gates = offset + project(from_inputs, x) + project(from_hidden, hidden)
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs), cell
