"""Work of a GPU that is recorded once and then replayed without Python: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

TensorFunction = Callable[..., tuple[Any, ...]]
# Calls before the recording: in these, libraries make their workspaces and code is compiled.
WARM_UP = 3


class GraphedFunction:
    """A function of tensors that is recorded, for each set of shapes, after its first `WARM_UP` calls, and replayed.

    The function may also read and write what stays where it is, as parameters and running statistics do, and draw from
    torch's global generator. No gradient leads to its arguments. What it does beside, in Python, is done in its first
    calls alone.

    Args:
        function: Function that gives a tuple of tensors, with None where there is none.
        copies: Whether results are copied. A graph writes to fixed memory, so without copies each call overwrites what
            an earlier one gave.
    """

    def __init__(self, function: TensorFunction, *, copies: bool = True) -> None:
        self._function = function
        self._copies = copies
        self._stream: Any = None
        self._calls: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording] = {}

    def __call__(self, *arguments: Tensor | None) -> tuple[Any, ...]:
        given = [None if tensor is None else tensor.detach() for tensor in arguments]
        on_gpu = any(tensor is not None and tensor.is_cuda for tensor in given)
        if on_gpu and torch.cuda.is_current_stream_capturing():  # a recording takes in what is called within
            return self._function(*given)
        if on_gpu and self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        shapes = tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in given)
        counted = is_in_torch_dispatch_mode()  # e.g. by FlopCounterMode, which sees no operation in a replay
        if counted or (shapes not in self._recordings and self._calls.get(shapes, 0) < WARM_UP):
            self._calls[shapes] = self._calls.get(shapes, 0) + (not counted)
            with aside(self._stream):
                return self._function(*given)
        if shapes not in self._recordings:
            held = [None if tensor is None else tensor.clone() for tensor in given]
            self._recordings[shapes] = _Recording(held, *capture(self._function, held, self._stream))
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


@contextmanager
def aside(stream: Any) -> Iterator[None]:
    """Inside the block, work goes to that stream of a GPU, after what was begun before and before what follows.

    Backward does some of its work on the stream of an earlier pass. So that none of it escapes a recording, passes
    before it are made where it will be. A stream of None is the present one.
    """
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def capture(
    function: TensorFunction, given: Sequence[Tensor | None], stream: Any
) -> tuple[Callable[[], object], tuple[Any, ...]]:
    """Record a call, which does nothing yet: what replays it, and what that will write to."""
    graph = torch.cuda.CUDAGraph()
    # Backward runs in a thread of its own, and what other threads do is none of its business.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        made = function(*given)
    return graph.replay, made
