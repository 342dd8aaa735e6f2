"""Optimizers and the counter without the compiler do as torch's own. That they load none: tests/test_package.py."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.optim import Optimizer

from tune_stn.nn import without_compiler
from tune_stn.nn.first_order import first_order
from tune_stn.nn.without_compiler import KNOWN, light, undecorated
from tune_stn.training.flops import FlopCounter

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not without_compiler.torch_is_known(), reason="this version of torch keeps its own optimizers and counter"
)
KINDS = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind not in (Optimizer, torch.optim.SparseAdam)
]


@pytest.fixture(autouse=True, params=[False, True], ids=["no compiler", "compiler loaded"])
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the compiler counts as loaded, whatever other tests have done in this process."""
    monkeypatch.setattr(without_compiler, "compiler_is_loaded", lambda: request.param)
    assert isinstance(request.param, bool)
    return request.param


def test_the_version_of_torch_that_constraints_pin_is_known() -> None:
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert pinned.startswith(tuple(f"torch=={version}." for version in KNOWN))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_optimizer_steps_as_torchs_own_to_the_bit_and_calls_hooks_once(kind: type[Optimizer]) -> None:
    found = []
    for made in (kind, light(kind)):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 2))]
        inputs, calls = torch.randn(5, 3), []
        optimizer: Any = made(weights)
        assert repr(optimizer).startswith(kind.__name__)

        def loss(optimizer: Any = optimizer, weights: Any = weights, inputs: Any = inputs) -> torch.Tensor:
            optimizer.zero_grad()
            value: torch.Tensor = (inputs @ weights[0] @ weights[1]).square().sum()
            value.backward()
            return value

        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        for step in range(4):
            if step == 2:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = made(weights)
                optimizer.load_state_dict(state)
            optimizer.step(loss)
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})
        found.append((weights, calls, optimizer.state_dict()))
    (expected, hooked, state), (weights, calls, mine) = found
    assert all(torch.equal(*pair) for pair in zip(expected, weights, strict=True))
    assert calls == hooked == [True, True]
    assert str(mine) == str(state)


def test_gradients_pass_through_a_differentiable_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.1, requires_grad=True)
    optimizer = light(torch.optim.SGD)([weight.clone()], lr=rate, differentiable=True)
    (stepped,) = optimizer.param_groups[0]["params"]
    stepped.grad = torch.ones(2)
    optimizer.step()
    assert stepped.requires_grad


class Own(torch.optim.SGD):
    """An optimizer of the user's."""


def test_what_is_not_torchs_own_and_another_torch_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert light(Own) is Own
    assert light(torch.optim.SGD) is not torch.optim.SGD
    monkeypatch.setattr(torch, "__version__", "2.130.0")
    assert light(torch.optim.SGD) is torch.optim.SGD
    assert undecorated(Optimizer.zero_grad) is Optimizer.zero_grad


def test_a_tangent_through_a_batch_norm_is_torchs_own_to_the_bit() -> None:
    norm, inputs, tangent = nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)

    def twice(inputs: torch.Tensor) -> torch.Tensor:
        return norm(inputs) * norm.weight.sum() / 2 + norm(inputs - 1)

    found = first_order(lambda: twice(forward_ad.make_dual(inputs, tangent)))()
    with forward_ad.dual_level():
        assert torch.equal(found, sum(forward_ad.unpack_dual(twice(forward_ad.make_dual(inputs, tangent)))))


@pytest.mark.parametrize("version", [torch.__version__, "2.130.0"])
def test_the_counter_counts_alike(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    net, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    with FlopCounter() as counter:
        net(inputs).sum().backward()
    assert counter.get_total_flops() == 2 * 5 * (2 * 3 * 4 + 3 * 4 * 2)  # the first layer's inputs want no gradient
