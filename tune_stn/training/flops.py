"""Torch's counter of floating-point operations, completed."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
Shape = torch.Size


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(of_output: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(of_output, query, key, value))  # type: ignore[no-untyped-call]


# Fused operations that torch's counter takes for free.
FORMULAS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class FlopCounter(FlopCounterMode):
    """Counts products, convolutions and fused layers inside the block, forward and backward, in total only."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=FORMULAS)
        # Its own tracker of modules fails where a module takes a parameter as its input, as parametrisations do.
        self.mod_tracker = _NoModules()  # type: ignore[assignment]


class _NoModules:
    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
