"""What a recurrent network remembers from one batch of a text to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Carry:
    """The states of a recurrent network between the batches of one pass over a text.

    A state is a tensor of shape `(layers, batch, ...)`, as torch's recurrent layers have it, or tuples, lists and dicts
    of such. The pass makes one carry and steps it on from batch to batch; whoever runs the network on a batch reads the
    state before it, as often as needed, and leaves the state after it.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._after: dict[int, Any] = {}  # by the first row it is of

    def before(self, rows: slice = slice(None)) -> Any:
        """The state at the beginning of the batch, for some of its rows; None at the beginning of the text."""
        return None if self._before is None else _map(lambda state: state[:, rows].contiguous(), self._before)

    def leave(self, after: Any, rows: slice = slice(None)) -> None:
        """Note the state at the end of the batch, without its graph, for these rows of it."""
        self._after[rows.start or 0] = _map(Tensor.detach, after)

    def unread(self) -> Carry:
        """A copy that gives the same states, and takes what is left to itself."""
        copy = Carry()
        copy._before = self._before
        return copy

    def step(self) -> None:
        """Go on to the next batch: what was left becomes what is before."""
        parts = [self._after[row] for row in sorted(self._after)]
        self._before = parts[0] if len(parts) == 1 else _joined(parts) if parts else None
        self._after = {}


def _map(function: Any, state: Any) -> Any:
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: _map(function, value) for key, value in state.items()}
    if isinstance(state, (tuple, list)):
        return type(state)(_map(function, value) for value in state)
    raise TypeError(
        f"a recurrent network gave {type(state).__name__} as its state: accepted are tensors of shape "
        "(layers, batch, ...), and tuples, lists and dicts of them"
    )


def _joined(parts: list[Any]) -> Any:
    """One state of parts that hold consecutive rows."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts, 1)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    return type(first)(_joined(list(values)) for values in zip(*parts, strict=True))
