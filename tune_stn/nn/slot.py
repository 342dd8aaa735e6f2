"""The one place from which a network's layers read the current sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tune_stn.space.sample import Sample


class Slot:
    """Holds the current sample of one network. Its layers share the slot, so no `forward` has to pass it on."""

    def __init__(self) -> None:
        self._sample: Sample | None = None

    @property
    def is_set(self) -> bool:
        return self._sample is not None

    @property
    def sample(self) -> Sample:
        """The current sample. Raises RuntimeError outside `using`."""
        if self._sample is None:
            raise RuntimeError("the network has no hyperparameter sample: call it inside `with model.using(sample):`")
        return self._sample

    @contextmanager
    def using(self, sample: Sample) -> Iterator[None]:
        """Make `sample` current inside the block; blocks nest.

        With a response, torch's inference path for transformer layers is off: it reads the parameters of a layer's
        children past their `forward`. Without one it is right, for base parameters keep their names.
        """
        before, self._sample = self._sample, sample
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(fast and sample.response_input is None)
        try:
            yield
        finally:
            self._sample = before
            torch.backends.mha.set_fastpath_enabled(fast)


def per_row(values: Tensor, like: Tensor, *, where: str) -> Tensor:
    """Reshape `values` of shape `(rows,)` to broadcast over the first axis of `like`, of shape `(batch, ...)`.

    Raises:
        ValueError: there are several rows and their number is not the batch size of `like`.
    """
    check_rows(values.shape[0], like, where=where)
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def check_rows(rows: int, like: Tensor, *, where: str) -> None:
    """Raise ValueError unless `rows` is 1 or the size of the first axis of `like`."""
    if rows != 1 and (like.dim() == 0 or like.shape[0] != rows):
        raise ValueError(
            f"{where} got an input of shape {tuple(like.shape)} with hyperparameters for {rows} examples: the first "
            "axis must be the batch. If the model moves the batch elsewhere, make its hyperparameters per batch"
        )
