"""Outputs of inner modules are collected while a block lasts, and no longer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn.observe import observing


class Network(nn.Module):
    """An LSTM, whose output is a tuple, a layer that is called twice and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.idle = nn.Linear(1, 1)
        self.splits = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.inner(self.inner(self.lstm(inputs)[0]))
        self.splits({"hidden": hidden})
        return hidden * 2


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


def test_outputs_are_those_of_each_call_in_order(network: Network) -> None:
    inputs = torch.randn(2, 5, 3)
    with observing(network, ["inner", "inner.0", "lstm", ""]) as seen:
        result = network(inputs)
    assert {path: len(outputs) for path, outputs in seen.items()} == {"inner": 2, "inner.0": 2, "lstm": 1, "": 1}
    hidden = network.lstm(inputs)[0]
    assert torch.equal(seen["lstm"][0], hidden)
    assert torch.equal(seen["inner"][0], network.inner(hidden))
    assert torch.equal(seen["inner.0"][1], network.inner[0](network.inner(hidden)))
    assert seen[""][0] is result
    (gradient,) = torch.autograd.grad(seen["inner"][0].sum(), network.lstm.weight_hh_l0)
    assert gradient.abs().sum() > 0


def test_a_path_asked_for_twice_is_observed_once(network: Network) -> None:
    with observing(network, iter(["lstm", "lstm"])) as seen:
        network(torch.randn(2, 5, 3))
    assert len(seen["lstm"]) == 1


def test_nothing_is_left_behind(network: Network) -> None:
    """Not after an error either; a user's own hooks stay."""
    calls: list[int] = []
    network.lstm.register_forward_hook(lambda module, inputs, output: calls.append(1))
    with observing(network, ["lstm"]) as seen:
        network(torch.randn(2, 5, 3))
    with pytest.raises(RuntimeError), observing(network, ["lstm"]):
        network(torch.randn(2, 5, 7))
    network(torch.randn(2, 5, 3))
    assert len(seen["lstm"]) == 1
    assert len(network.lstm._forward_hooks) == 1
    assert len(calls) == 2


def test_blocks_nest(network: Network) -> None:
    with observing(network, ["lstm"]) as outer:
        with observing(network, ["lstm"]) as inner:
            network(torch.randn(2, 5, 3))
        network(torch.randn(2, 5, 3))
    assert (len(outer["lstm"]), len(inner["lstm"])) == (2, 1)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("lstn", r"no module 'lstn' to observe; the network has lstm, inner, inner\.0, inner\.1, idle, splits$"),
        ("inner.7", "no module 'inner.7' to observe"),
        ("lstm.weight_hh_l0", "no module 'lstm.weight_hh_l0' to observe"),
        ("idle", "module 'idle' has no output to observe: the forward pass of the network does not call it"),
        ("splits", "gave dict: a tensor is needed, or a tuple that begins with one"),
    ],
)
def test_what_cannot_be_observed_is_named(network: Network, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), observing(network, ["lstm", path]):
        network(torch.randn(2, 5, 3))
    assert not network.lstm._forward_hooks
