"""The counter of operations, where torch's own is wrong or fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import flop_counter

from tune_stn.training import Trainer
from tune_stn.training.flops import FORMULAS, FlopCounter


def test_fused_attention_counts_as_what_it_fuses() -> None:
    query, key, value = torch.randn(3, 2, 4, 16, 8, requires_grad=True).unbind()
    counts = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend), FlopCounter() as counter:
            F.scaled_dot_product_attention(query, key, value).sum().backward()
        counts.append(counter.get_total_flops())
    products = 2 * 2 * 4 * 16 * 16 * 8  # of queries and keys, or of weights and values
    assert counts[1] == 6 * products
    # Its backward forms the weights again instead of keeping them.
    assert counts[0] == 7 * products


def test_a_module_whose_input_is_a_parameter() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    with FlopCounter() as counter:
        torch.autograd.grad(layer(torch.randn(4, 5)).sum(), list(layer.parameters()))
    assert counter.get_total_flops() == 2 * 2 * 4 * 5 * 3  # forward, and the weight's gradient


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
def test_a_fused_lstm_counts_as_what_it_fuses(settings: dict[str, Any]) -> None:
    """Torch fuses it in single precision and takes it apart in double."""
    counts = []
    for dtype in (torch.float32, torch.float64):
        layer = nn.LSTM(5, 7, dtype=dtype, **settings)
        inputs = torch.randn(4, 3, 5, dtype=dtype, requires_grad=True)
        shape = len(layer.all_weights), 4 if layer.batch_first else 3, 7
        hidden, cell = torch.zeros(2, *shape, dtype=dtype, requires_grad=True)
        with FlopCounter() as counter:
            layer(inputs, (hidden, cell))[0].sum().backward()
        counts.append(counter.get_total_flops())
    matrices = sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)
    assert counts == [3 * 2 * 4 * 3 * matrices] * 2


def test_the_fused_lstm_of_a_gpu_counts_likewise() -> None:
    """By its shapes, for its kernel runs nowhere else; gradients of the weights only where they are made."""
    aten = torch.ops.aten
    shapes = torch.Size([4, 3, 5]), [torch.Size([28, 5]), torch.Size([28, 7]), torch.Size([28])]
    once = 2 * 4 * 3 * 28 * (5 + 7)
    assert FORMULAS[aten._cudnn_rnn](*shapes, 2, None) == once
    assert FORMULAS[aten._cudnn_rnn_backward](*shapes, 2, [True, True, True, False]) == once
    assert FORMULAS[aten._cudnn_rnn_backward](*shapes, 2, [True, True, True, True]) == 2 * once


@torch.library.custom_op("tune_stn_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


twice.register_autograd(lambda context, gradient: twice(gradient))


class Twice(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return twice(super().forward(input))  # type: ignore[no-any-return]


def test_operators_without_a_formula_are_named_unless_they_are_cheap() -> None:
    layer, inputs = Twice(5, 3), torch.randn(4, 5)
    with FlopCounter() as counter:
        F.dropout(layer(inputs).relu(), 0.5).sum().backward()
    assert counter.unknown == {"tune_stn_tests.twice"}
    with FlopCounter() as counter:
        torch.fft.rfft(inputs)
        torch.linalg.eigh(inputs.T @ inputs)
    assert len(counter.unknown) == 2
    with FlopCounter() as counter:
        torch.linalg.vector_norm(inputs)
        torch.linalg.inv(inputs.T[:4])  # which checks for errors, too
    assert counter.unknown == {"aten.linalg_inv_ex"}


def test_a_run_names_them_once_and_takes_a_formula(
    make_task: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_task()
    task = make_task(model=lambda: nn.Sequential(plain.model(), Twice(3, 3)), dropout={"0.3": "dropout"})
    Trainer(task, algorithm="fixed")
    (message,) = caplog.messages
    assert "tune_stn_tests.twice" in message
    assert "register_flop_formula" in message
    caplog.clear()
    monkeypatch.setitem(flop_counter.flop_registry, torch.ops.tune_stn_tests.twice, lambda *_, out_val, **__: 7)
    Trainer(task, algorithm="fixed")
    assert not caplog.messages
