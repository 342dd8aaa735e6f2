"""The plain dropout modules: what they drop, and that they behave as those of torch do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import LockedDropout, StochasticDepth

KINDS: list[type[nn.Dropout]] = [LockedDropout, StochasticDepth]
each_kind = pytest.mark.parametrize("kind", KINDS)


def seeded(module: nn.Module, inputs: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    outputs: Tensor = module(inputs)
    return outputs


@pytest.mark.parametrize("batch_first", [True, False])
def test_locked_mask_is_one_for_all_times(batch_first: bool) -> None:
    outputs = seeded(LockedDropout(0.3, batch_first=batch_first), torch.ones(40, 30, 20))
    if not batch_first:
        outputs = outputs.transpose(0, 1)
    assert torch.equal(outputs, outputs[:, :1].expand_as(outputs))
    assert sorted(outputs.unique().tolist()) == pytest.approx([0, 1 / 0.7])  # type: ignore[no-untyped-call]
    assert not torch.equal(outputs[0], outputs[1])
    assert float((outputs == 0).double().mean()) == pytest.approx(0.3, abs=5 * (0.21 / (len(outputs) * 20)) ** 0.5)


def test_branches_are_dropped_whole() -> None:
    outputs = seeded(StochasticDepth(0.3), torch.ones(2000, 2, 3)).flatten(1)
    assert torch.equal(outputs, outputs[:, :1].expand_as(outputs))
    assert sorted(outputs.unique().tolist()) == pytest.approx([0, 1 / 0.7])  # type: ignore[no-untyped-call]
    assert float((outputs == 0).double().mean()) == pytest.approx(0.3, abs=5 * (0.21 / 2000) ** 0.5)


@each_kind
def test_ends_of_the_rate_and_eval_mode(kind: type[nn.Dropout]) -> None:
    inputs = torch.randn(4, 5, 3)
    assert torch.equal(kind(0.0)(inputs), inputs)
    assert not kind(1.0)(inputs).any()
    assert kind(1.0).eval()(inputs) is inputs
    assert kind(0.5)(inputs.bfloat16()).dtype == torch.bfloat16
    for rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match="has to be between 0 and 1"):
            kind(rate)


@each_kind
def test_seed_decides_and_the_gradient_is_the_mask(kind: type[nn.Dropout]) -> None:
    inputs = torch.rand(32, 40, 3).add_(0.5).requires_grad_()
    outputs = seeded(kind(0.5), inputs)
    assert torch.equal(outputs, seeded(kind(0.5), inputs))
    assert not torch.equal(outputs, seeded(kind(0.5), inputs, seed=1))
    (gradient,) = torch.autograd.grad(outputs.sum(), [inputs])
    torch.testing.assert_close(gradient, (outputs / inputs).detach())


def test_locked_needs_an_axis_for_time_and_one_for_units() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 3\); accepted are \(time, batch, features\), or"):
        LockedDropout()(torch.ones(4, 3))


def test_repr_shows_what_was_set() -> None:
    assert repr(LockedDropout(0.3)) == "LockedDropout(p=0.3, batch_first=False)"
    assert repr(StochasticDepth()) == "StochasticDepth(p=0.1)"
