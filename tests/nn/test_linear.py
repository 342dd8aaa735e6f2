"""What is special to the linear family; the contract of all families is in test_response."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tune_stn.nn import ResponseLinear, ResponseSize, Slot
from tune_stn.space.sample import Sample


def make(size: ResponseSize, *, bias: bool = True) -> ResponseLinear:
    torch.manual_seed(0)
    base = nn.Linear(3, 4, bias=bias, dtype=torch.float64)
    layer = ResponseLinear(base, 2, size, Slot(), torch.Generator().manual_seed(1))
    nn.init.normal_(layer.gate)
    return layer


def test_the_equation_by_hand() -> None:
    """y = W x + b + u(h) * (V x) + c(h) * b', the words of the paper in numbers."""
    layer = make("full")
    x, h = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    with layer.slot.using(Sample({}, h)):
        outputs = layer(x)
    assert layer.bias is not None
    for row in range(5):
        gates = layer.gate @ h[row]
        expected = (
            layer.weight @ x[row]
            + layer.bias
            + gates[:4] * (layer.response_weight @ x[row])
            + gates[4:] * layer.response_bias
        )
        torch.testing.assert_close(outputs[row], expected)


@pytest.mark.parametrize("size", ["full", 2, "gate"])
def test_axes_between_batch_and_features_share_the_examples_response(size: ResponseSize) -> None:
    layer = make(size)
    x, h = torch.randn(3, 5, 2, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    with layer.slot.using(Sample({}, h)):
        outputs = layer(x)
    for i in range(5):
        for j in range(2):
            with layer.slot.using(Sample({}, h)):
                torch.testing.assert_close(outputs[:, i, j], layer(x[:, i, j]))


def test_what_a_users_forward_reads_of_the_base_is_there() -> None:
    layer = make("gate", bias=False)
    assert [getattr(layer, name) for name in ("in_features", "out_features")] == [3, 4]
    assert layer.bias is None
    assert repr(layer) == "ResponseLinear(weight=(4, 3), response=gate, inputs=2)"
    assert "response=rank 2" in repr(make(2))


def test_ridge_theorem_form_has_no_bias_response() -> None:
    """A gate-only layer without bias is W scaled by unit, and nothing else."""
    layer = make("gate", bias=False)
    h = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64)
    with layer.slot.using(Sample({}, h)):
        outputs = layer(x)
    torch.testing.assert_close(outputs, (x @ layer.weight.T) * (1 + layer.gate @ h[0]))
