"""Which layers respond, and that a converted network is as good as the user's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from tune_stn.nn import ResponseLinear, UnitDropout
from tune_stn.nn import self_tuning as convert
from tune_stn.space import SearchSpace, Uniform

Network = Any  # of conftest.py

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.3, "other": 0.1}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


def test_sizes_by_path_first_match_first(control_flow: Network) -> None:
    model = convert(control_flow.make(), SPACE, start=START, response={"stem": None, "heads.*": 3, "blocks.*": "full"})
    conversion = model.conversion
    assert conversion.responding == {
        "blocks.0.0": "full",
        "blocks.1.0": "full",
        "heads.a": "rank 3",
        "heads.b": "rank 3",
    }
    asked = {path: reason for path, reason in conversion.plain.items() if path}
    assert asked == {"stem": "no response asked for", "shared": "no response asked for"}


def test_reason_for_a_size_is_told(control_flow: Network) -> None:
    """Where somebody else than the user has chosen it."""
    model = convert(control_flow.make(), SPACE, start=START, response={"stem": "gate", "shared": 8}, why="4 examples")
    assert model.conversion.responding == {
        "stem": "gate (automatic: 4 examples)",
        "shared": "rank 8 (automatic: 4 examples)",
    }


def test_wrong_sizes_are_refused(control_flow: Network) -> None:
    with pytest.raises(ValueError, match="response='gates': accepted are"):
        convert(control_flow.make(), SPACE, start=START, response="gates")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="response=0: accepted are"):
        convert(control_flow.make(), SPACE, start=START, response={"stem": 0})
    with pytest.raises(ValueError, match=r"response path 'steam' matches no module with parameters; there are: .*stem"):
        convert(control_flow.make(), SPACE, start=START, response={"steam": "full", "*": "gate"})


@pytest.mark.parametrize("change", [{"rate": 0.95}, {"rate": None}, {"unknown": 1.0}])
def test_wrong_start_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        convert(nn.Linear(2, 2), SPACE, start={**START, **change})


def test_seed_decides_the_response_alone() -> None:
    drawn = [convert(mlp(), SPACE, start=START, response="full", seed=seed) for seed in (1, 1, 2)]
    first, same, other = (model.state_dict() for model in drawn)
    assert all(torch.equal(first[name], same[name]) for name in first)
    differing = {name.rpartition(".")[2] for name in first if not torch.equal(first[name], other[name])}
    assert differing == {"response_weight", "response_bias"}


def test_lazy_layer_is_left_plain_and_converts_once_it_knows_its_inputs() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.LazyLinear(4)
            self.out = nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.out(F.relu(self.hidden(inputs)))
            return outputs

    plain, inputs = Lazy(), torch.randn(3, 5)
    model = convert(plain, SPACE, start=START)
    assert model.conversion.responding == {"out": "gate"}
    assert "run a batch through the model before its conversion" in model.conversion.plain["hidden"]
    assert model(inputs).shape == (3, 2)
    plain(inputs)
    again = convert(plain, SPACE, start=START).eval()
    assert set(again.conversion.responding) == {"hidden", "out"}
    torch.testing.assert_close(again(inputs), plain(inputs))


def test_pruned_layer_is_left_plain_for_its_hook() -> None:
    """Pruning keeps the weight up to date by a hook; a replacement would train the wrong tensor."""
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        prune.random_unstructured(network[0], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    model = convert(network, SPACE, start=START)
    assert model.conversion.plain == {
        "0": "has hooks, which a replacement would lose: register them after the conversion"
    }
    assert model.conversion.responding == {"2": "gate"}


def test_a_kept_tensor_with_a_graph_is_copied_without_it() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    network.kept = [network(torch.ones(1, 4))]
    model = convert(network, SPACE, start=START)
    assert torch.equal(model.kept[0], network.kept[0])
    assert model.kept[0].is_leaf
    assert not network.kept[0].is_leaf


def test_shared_module_stays_shared_and_counts_once(control_flow: Network) -> None:
    model = control_flow.converted()
    shared = model.network.get_submodule("shared")
    assert shared is model.network.get_submodule("twin")
    assert sum(layer is shared for layer in model.response_layers()) == 1


def test_batch_on_another_axis_is_refused_unless_the_batch_shares_everything() -> None:
    """As the error message advises."""

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.drop = nn.Dropout()

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.drop(self.fc(inputs.transpose(0, 1))).transpose(0, 1)
            return outputs

    inputs = torch.randn(3, 7, 4)
    model = convert(SequenceFirst(), SPACE, start=START, dropout={"drop": "rate"})
    with (
        pytest.raises(ValueError, match="its first axis is not the batch"),
        model.using(model.perturbed_sample(3)),
    ):
        model(inputs)
    shared = SearchSpace(SPACE, per_batch=SPACE)
    model = convert(SequenceFirst(), shared, start=START, dropout={"drop": "rate"})
    with model.using(model.perturbed_sample(3)):
        assert model(inputs).shape == (3, 7, 4)


def test_double_precision_network_keeps_its_precision() -> None:
    model = convert(mlp().double(), SPACE, start=START, dropout={"2": "rate"}, response="full").train()
    inputs = torch.randn(4, 5, dtype=torch.float64)
    assert {p.dtype for p in model.network.parameters()} == {torch.float64}
    with model.using(model.perturbed_sample(4)):
        assert model(inputs).dtype == torch.float64


def test_hyperparameters_live_where_the_network_does() -> None:
    model = convert(mlp().to("meta"), SPACE, start=START)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {b.device.type for b in model.buffers()} == {"meta"}


class Listed(nn.Module):
    """Keeps its layers in plain containers besides, and uses them from there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.block = nn.Sequential(nn.Linear(4, 4))
        self.in_list = [self.first, torch.tanh, 3]
        self.in_tuple = (self.second, "name")
        self.in_dict = {"drop": self.drop, "other": None}
        self.block.outer = [self.first]  # of another module
        object.__setattr__(self, "bare", self.first)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.in_tuple[0](self.in_list[0](inputs)) + self.block.outer[0](inputs) + self.bare(inputs)
        outputs: Tensor = self.block(self.in_dict["drop"](hidden))
        return outputs


def test_modules_in_plain_containers_are_replaced_there_too() -> None:
    plain = Listed()
    model = convert(plain, SPACE, start=START, dropout={"drop": "rate"})
    for network in (model.network, copy.deepcopy(model).network):
        assert isinstance(network, Listed)
        assert isinstance(network.first, ResponseLinear)
        assert network.in_list == [network.first, torch.tanh, 3]
        assert network.in_tuple == (network.second, "name")
        assert isinstance(network.drop, UnitDropout)
        assert network.in_dict == {"drop": network.drop, "other": None}
        assert network.block.outer == [network.first]
        assert network.bare is network.first
    assert plain.in_list == [plain.first, torch.tanh, 3]
    assert plain.in_tuple == (plain.second, "name")
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(model.eval()(inputs), plain.eval()(inputs))


@pytest.mark.parametrize("kept", ["all", "attention", "linear1"])
def test_encoder_of_torch_uses_its_responses_without_gradients_too(kept: str) -> None:
    """Where it would take fused kernels, which read base weights only."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    response = {"all": "gate", "attention": {"*.self_attn": "gate"}, "linear1": {"*.linear1": "gate"}}[kept]
    model = convert(nn.TransformerEncoder(layer, 2), SPACE, start=START, response=response).eval()
    for name, parameter in model.network.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter)
    inputs = torch.randn(3, 5, 8)
    padding = torch.arange(5).expand(3, 5) >= torch.tensor([5, 3, 4])[:, None]
    for settings in ({}, {"src_key_padding_mask": padding}):
        for sample in (model.mean_sample(), model.perturbed_sample(3)):
            with model.using(sample):
                expected = model(inputs, **settings).detach()
                with torch.no_grad():
                    found = model(inputs, **settings)
            seen = ~padding if settings else torch.ones_like(padding)
            torch.testing.assert_close(found[seen], expected[seen])


def test_attention_that_stays_plain_keeps_its_projection_plain() -> None:
    """Torch reads its weight past its forward."""
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = nn.Linear(4, 4)
    model = convert(attention, SPACE, start=START)
    assert model.conversion.plain == {
        "": "its out_proj is a Linear",
        "out_proj": "its parent reads the parameters directly",
    }
