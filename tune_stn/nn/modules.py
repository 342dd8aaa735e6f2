"""Dropout modules that torch lacks, with a fixed rate like torch's own: for a user's network.

`self_tuning` replaces those that are named in its `dropout` by the forms of `nn.dropout` that read a hyperparameter.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class LockedDropout(nn.Dropout):
    """Variational dropout: one mask for each example and unit, the same at all times (arXiv 1512.05287).

    Inputs and outputs `(time, batch, ...)`, or `(batch, time, ...)` if `batch_first`, with at least one axis more.

    Args:
        p: Probability of a zero.
        batch_first: Whether the batch is the first axis of the input, as in `nn.LSTM`; otherwise it is the second.

    Raises:
        ValueError: `p` is outside [0, 1], or an input has fewer than three axes.

    Example:
        >>> LockedDropout(0.3, batch_first=True)(torch.ones(8, 35, 200))
    """

    def __init__(self, p: float = 0.5, batch_first: bool = False) -> None:
        super().__init__(p)
        self.batch_first = batch_first

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        return inputs * F.dropout(inputs.new_ones(locked_mask_shape(inputs, self.batch_first)), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, batch_first={self.batch_first}"


class StochasticDepth(nn.Dropout):
    """Drops an example's whole branch (arXiv 1603.09382): `x + StochasticDepth(0.1)(branch(x))`.

    Inputs and outputs `(batch, ...)`. Branches that are kept are divided by `1 - p`, so nothing is left to do in eval
    mode.

    Args:
        p: Probability that a branch is dropped.

    Raises:
        ValueError: `p` is outside [0, 1].
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__(p)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        return inputs * F.dropout(inputs.new_ones(branch_mask_shape(inputs)), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def locked_mask_shape(inputs: Tensor, batch_first: bool) -> tuple[int, ...]:
    """One draw for each example and unit. Raises ValueError where the input lacks one of the two axes."""
    if inputs.dim() < 3:
        raise ValueError(
            f"locked dropout got an input of shape {tuple(inputs.shape)}; accepted are (time, batch, features), or "
            "(batch, time, features) with batch_first=True"
        )
    first, second, *units = inputs.shape
    return (first, 1, *units) if batch_first else (1, second, *units)


def branch_mask_shape(inputs: Tensor) -> tuple[int, ...]:
    """One draw for each example."""
    return (inputs.shape[0], *[1] * (inputs.dim() - 1))
