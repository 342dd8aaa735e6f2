"""A text as a split: contiguous batches, through which a recurrent network carries its state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tune_stn.data.batches import IGNORED, Batch
from tune_stn.data.carry import Carry
from tune_stn.data.splits import Split


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens in their order, each to be predicted from those before it.

    The text is laid out in as many columns as a batch has rows, each a stretch of it; a batch holds the next few tokens
    of every column, and carries on where the batch before it ended. Batches have inputs and targets of shape
    `(batch, time)`, int64, the targets one token ahead.

    Attributes:
        tokens: Numbers of the tokens, int64 of shape `(n,)`, at least two.
        window: Number of time steps of a batch; truncated backpropagation goes back no further.

    Raises:
        ValueError: fewer than two tokens, another shape or type, or a window below 1.
    """

    tokens: Tensor
    window: int

    def __post_init__(self) -> None:
        if self.tokens.dim() != 1 or self.tokens.dtype != torch.int64 or len(self.tokens) < 2:
            raise ValueError(
                f"tokens are {self.tokens.dtype} of shape {tuple(self.tokens.shape)}: accepted are int64 of shape "
                "(n,), two or more of them, for each is predicted from those before it"
            )
        if self.window < 1:
            raise ValueError(f"window={self.window}: accepted is an integer of 1 or more")

    def __len__(self) -> int:
        """Tokens to be predicted: all but the first."""
        return len(self.tokens) - 1

    def to(self, device: torch.device | str) -> Text:
        return Text(self.tokens.to(device), self.window)

    def steps(self, batch_size: int) -> int:
        """Batches in one pass: full ones only, and at least one."""
        return self._layout(batch_size)[1]

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One pass in order, in batches of one shape, from a random one of the first tokens on.

        What is left over, less than a batch and a column for each row, is elsewhere in the next pass.
        """
        return self._pass(batch_size, generator)

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Passes without end, the first of them from a random batch on: so short visits see all of the text."""
        first = int(torch.randint(self.steps(batch_size), (), generator=generator))
        while True:
            yield from self._pass(batch_size, generator, first)
            first = 0

    def whole(self, batch_size: int) -> Iterator[Batch]:
        """Every token but the first is predicted once; targets that fill the last column up are `IGNORED`."""
        rows = min(batch_size, len(self))
        length = -(-len(self) // rows)
        missing = rows * length - len(self)
        inputs = torch.cat([self.tokens[:-1], self.tokens.new_zeros(missing)]).view(rows, length)
        targets = torch.cat([self.tokens[1:], self.tokens.new_full((missing,), IGNORED)]).view(rows, length)
        return self._windows(inputs, targets)

    def _layout(self, batch_size: int) -> tuple[int, int, int]:
        """Rows, batches of a pass, and time steps of a batch."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: accepted is an integer of 1 or more")
        rows = min(batch_size, len(self))
        length = len(self) // rows
        window = min(self.window, length)
        return rows, length // window, window

    def _pass(self, batch_size: int, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
        rows, steps, window = self._layout(batch_size)
        used = rows * steps * window
        start = int(torch.randint(len(self) - used + 1, (), generator=generator))
        inputs, targets = (self.tokens[at : at + used].view(rows, -1) for at in (start, start + 1))
        return self._windows(inputs[:, first * window :], targets[:, first * window :])

    def _windows(self, inputs: Tensor, targets: Tensor) -> Iterator[Batch]:
        carry = Carry()
        for ours, theirs in zip(*(torch.split(given, self.window, 1) for given in (inputs, targets)), strict=True):
            yield Batch(ours, theirs, carry)
            carry.step()


def passages(tokens: Tensor, window: int, *, full: bool = False) -> Split:
    """A text as examples of their own, for networks that carry nothing: `(n, window)`, the targets one token ahead.

    Every token but the first is a target once; what fills the last passage up is `IGNORED`.

    Args:
        tokens: Numbers of the tokens, int64 of shape `(n,)`, at least two.
        window: Number of tokens of a passage.
        full: Whether to leave out a last passage that has to be filled up: where targets turn into probabilities, no
            target can be ignored. Default False.

    Raises:
        ValueError: as from `Text`, or `full` and not one passage is.
    """
    text = Text(tokens, window)
    if full:
        if len(text) < window:
            raise ValueError(f"{len(tokens)} tokens have no passage of {window} with the token after it")
        tokens = tokens[: len(text) // window * window + 1]
    missing = -(len(tokens) - 1) % window
    inputs = torch.cat([tokens[:-1], tokens.new_zeros(missing)])
    targets = torch.cat([tokens[1:], tokens.new_full((missing,), IGNORED)])
    return Split(inputs.view(-1, window), targets.view(-1, window))
