"""The counter of operations, where torch's own is wrong or fails."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tune_stn.training.flops import FlopCounter


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
