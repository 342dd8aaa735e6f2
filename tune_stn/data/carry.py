"""What a recurrent network remembers from one batch of a text to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


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
        return None if self._before is None else tree_map(lambda state: state[:, rows].contiguous(), self._before)

    def leave(self, after: Any, rows: slice = slice(None)) -> None:
        """Note the state at the end of the batch, without its graph, for these rows of it."""
        self._after[rows.start or 0] = tree_map(_detached, after)

    def unread(self) -> Carry:
        """A copy that gives the same states, and takes what is left to itself."""
        copy = Carry()
        copy._before = self._before
        return copy

    def step(self) -> None:
        """Go on to the next batch: what was left becomes what is before."""
        parts = [self._after[row] for row in sorted(self._after)]
        self._before = tree_map(lambda *states: torch.cat(states, 1), *parts) if parts else None
        self._after = {}


def _detached(leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    raise TypeError(
        f"a recurrent network gave {type(leaf).__name__} as its state: accepted are tensors of shape "
        "(layers, batch, ...), and tuples, lists and dicts of them"
    )
