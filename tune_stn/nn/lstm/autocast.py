"""Torch's own LSTM under autocast to bfloat16, on processors without bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def raises_under_autocast(device: str) -> bool:
    """Whether torch's own LSTM cannot run there under autocast to bfloat16.

    Torch asks whether oneDNN can run the LSTM before autocast casts it. oneDNN then finds bfloat16, which it has no
    LSTM for on such a processor: "could not create a primitive descriptor". Seen in torch 2.13.
    """
    if device != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def lstms_run(model: nn.Module, device: str) -> Iterator[None]:
    """Inside the block, which is under autocast to bfloat16, the plain LSTMs of `model` run on every processor.

    Where torch's own would raise, the block turns oneDNN off, and torch takes its other LSTM, whose products are in
    bfloat16 and whose cells are in float32. Nothing else gets slower: without bfloat16 in the processor, oneDNN takes
    no other bfloat16 operation either. On other devices, and for networks without LSTMs, the block changes nothing.
    """
    affected = raises_under_autocast(device) and any(isinstance(module, nn.LSTM) for module in model.modules())
    if not affected:
        yield
        return
    was = torch.backends.mkldnn.enabled
    # Not by `torch.backends.mkldnn.flags`, which sets the precision of float32 too, and warns.
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = was
