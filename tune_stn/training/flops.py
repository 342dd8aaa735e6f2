"""Torch's counter of floating-point operations, completed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MethodType
from typing import Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tune_stn.nn.without_compiler import undecorated

aten = torch.ops.aten
Size = torch.Size


def _attention(query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(of_output: Size, query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(of_output, query, key, value))  # type: ignore[no-untyped-call]


def _recurrent(inputs: Size, weights: Sequence[Size], *_: Any, **__: Any) -> int:
    """Each matrix is multiplied once for each example and step; of biases there is no product."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _lstm(inputs: Size, of_inputs: Size, of_hidden: Size, *_: Any, **__: Any) -> int:
    return _recurrent(inputs, (of_inputs, of_hidden))


def _lstm_backward(inputs: Size, of_inputs: Size, of_hidden: Size, *_: Any, **__: Any) -> int:
    return 2 * _lstm(inputs, of_inputs, of_hidden)


def _recurrent_backward(inputs: Size, weights: Sequence[Size], *rest: Any, **_: Any) -> int:
    """Of the data always, of the weights if the last argument says so."""
    passes = 2 if rest[-1][3] else 1
    return passes * _recurrent(inputs, weights)


# Fused operations that torch's counter takes for free.
FORMULAS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.mkldnn_rnn_layer: _lstm,
    aten.mkldnn_rnn_layer_backward: _lstm_backward,
    aten._cudnn_rnn: _recurrent,
    aten._cudnn_rnn_backward: _recurrent_backward,
}


# Namespaces of torch's own operators: what has no formula there moves or maps elements, but for a few.
OWN = ("aten", "prim", "prims", "rngprims", "profiler", "c10d", "_c10d_functional")
DECOMPOSITIONS = ("_fft_", "_linalg_", "linalg_qr", "linalg_inv", "linalg_lu", "linalg_cholesky", "_cdist_")
CHECKS = ("_linalg_check_errors",)


class FlopCounter(FlopCounterMode):
    """Counts products, convolutions and fused layers inside the block, forward and backward, in total only.

    Attributes:
        unknown: Names of the operators that may be expensive and have no formula, so that they count as free. The
            user's way to give one is `torch.utils.flop_counter.register_flop_formula`.
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=FORMULAS)
        self.unknown: set[str] = set()
        # Its own tracker of modules fails where a module takes a parameter as its input, as parametrisations do.
        self.mod_tracker = _NoModules()  # type: ignore[assignment]

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        mode: Any = self.mode
        dispatch = type(mode).__torch_dispatch__
        if (bare := undecorated(dispatch)) is not dispatch:
            mode.__torch_dispatch__ = MethodType(bare, mode)
        return self

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet not in self.flop_registry and _may_be_expensive(str(func_packet)):
            self.unknown.add(str(func_packet))
        return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]


def _may_be_expensive(operator: str) -> bool:
    namespace, _, name = operator.partition(".")
    return namespace not in OWN or (name.startswith(DECOMPOSITIONS) and name not in CHECKS)


class _NoModules:
    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
