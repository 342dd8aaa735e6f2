"""The one place from which a network's layers read the current sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable, forward_ad
from torch.utils._pytree import tree_leaves

from tune_stn.space.sample import Draw, Sample


class Slot:
    """Holds the current sample of one network. Its layers share the slot, so no `forward` has to pass it on.

    Attributes:
        current: The sample inside `using`.
        replayed: The sample of the forward pass that a backward pass is going back through, if any.
        called: Whether the network, or a method of it, was called since this was set to False.
        read: Names of the hyperparameters that a training loop was seen to read.
    """

    def __init__(self) -> None:
        self.current: Sample | Draw | None = None
        self.replayed: Sample | None = None
        self.called = False
        self.read: set[str] = set()

    @property
    def is_set(self) -> bool:
        return self.current is not None

    @property
    def sample(self) -> Sample:
        """The current sample. Raises RuntimeError outside `using`, and where tangents would have to be replayed."""
        if self.replayed is not None:
            if self.replayed.linearise:
                raise RuntimeError(
                    "a response step of Delta-STN came to a part of the network that torch.utils.checkpoint runs again "
                    "in the backward pass, where torch has lost the tangents: turn activation checkpointing off "
                    "(gradient_checkpointing_disable() in transformers), or take the algorithm 'auto' or 'stn'"
                )
            return self.replayed
        if not isinstance(self.current, Sample):
            raise RuntimeError(
                "a layer of the self-tuning network has no hyperparameter sample: call the network itself, not a part "
                "of it, or do that inside `with net.using(net.mean_sample()):`"
            )
        return self.current

    @contextmanager
    def using(self, sample: Sample | Draw) -> Iterator[None]:
        """Make `sample` current inside the block; blocks nest. A draw is one as soon as the network is called.

        With a response, torch's inference path for transformer layers is off: it reads the parameters of a layer's
        children past their `forward`. Without one it is right, for base parameters keep their names.
        """
        before, self.current = self.current, sample
        replayed, self.replayed = self.replayed, None
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(fast and isinstance(sample, Sample) and sample.response_input is None)
        try:
            yield
        finally:
            self.current, self.replayed = before, replayed
            torch.backends.mha.set_fastpath_enabled(fast)

    def replay(self, outputs: Any, sample: Sample) -> None:
        """Have layers read this sample again when the backward pass of these outputs runs them again.

        So does activation checkpointing. A backward pass comes to the outputs of a network before it comes to anything
        inside, and to those of a later forward pass before those of an earlier one.

        Args:
            outputs: What the network gave: a tensor, or a container of any kind.
            sample: What its layers have read.
        """

        def begin(_: Tensor) -> None:
            self.replayed = sample
            Variable._execution_engine.queue_callback(end)

        def end() -> None:
            self.replayed = None

        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and sample.linearise:
                leaf = forward_ad.unpack_dual(leaf).tangent  # type: ignore[no-untyped-call]
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                leaf.register_hook(begin)  # type: ignore[no-untyped-call]


def check_rows(rows: int, like: Tensor, *, where: str) -> None:
    """Raise ValueError unless `rows` is 1 or the size of the first axis of `like`."""
    if rows != 1 and (like.dim() == 0 or like.shape[0] != rows):
        raise ValueError(
            f"{where} got an input of shape {tuple(like.shape)} with hyperparameters for {rows} examples: the first "
            "axis must be the batch. If the model moves the batch elsewhere, make its hyperparameters per batch"
        )
