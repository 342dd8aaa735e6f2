"""Work of a GPU that is recorded once and then replayed without Python: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Function = Callable[..., tuple[Any, ...]]
# Calls before the recording: in these, libraries make their workspaces and code is compiled.
WARM_UP = 3


class Recorded:
    """A function of tensors that is recorded, for each set of shapes, after its first `WARM_UP` calls, and replayed.

    The function may also read and write what stays where it is, as parameters and running statistics do, and draw from
    torch's global generator. No gradient leads to its arguments. What it does beside, in Python, is done in its first
    calls alone.

    Args:
        function: gives tensors, or None where there is none, in a tuple.
        copies: whether results are copied. A graph writes to fixed memory, so without copies each call overwrites what
            an earlier one gave.
    """

    def __init__(self, function: Function, *, copies: bool = True) -> None:
        self._function = function
        self._copies = copies
        self._calls: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording] = {}

    def __call__(self, *arguments: Tensor | None) -> tuple[Any, ...]:
        given = [None if tensor is None else tensor.detach() for tensor in arguments]
        # Who counts operations would see none in a replay; and a recording takes in what is called within.
        if is_in_torch_dispatch_mode() or _capturing(given):
            return self._function(*given)
        shapes = tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in given)
        if shapes not in self._recordings:
            self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if self._calls[shapes] <= WARM_UP:
                return self._function(*given)
            held = [None if tensor is None else tensor.clone() for tensor in given]
            self._recordings[shapes] = _Recording(held, *capture(self._function, held))
        recording = self._recordings[shapes]
        for mine, theirs in zip(recording.given, given, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        recording.replay()
        if not self._copies:
            return recording.made
        return tuple(None if tensor is None else tensor.clone() for tensor in recording.made)


@dataclass(frozen=True)
class _Recording:
    given: list[Tensor | None]
    replay: Callable[[], object]
    made: tuple[Any, ...]


def capture(function: Function, given: Sequence[Tensor | None]) -> tuple[Callable[[], object], tuple[Any, ...]]:
    """Record a call, which does nothing yet: what replays it, and what that will write to."""
    graph = torch.cuda.CUDAGraph()
    # Backward runs in a thread of its own, and what other threads do is none of its business.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = function(*given)
    return graph.replay, made


def _capturing(given: Sequence[Tensor | None]) -> bool:
    on_gpu = any(tensor is not None and tensor.is_cuda for tensor in given)
    return on_gpu and torch.cuda.is_current_stream_capturing()
