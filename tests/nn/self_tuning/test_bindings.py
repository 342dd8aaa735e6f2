"""Which modules read a rate: dropout of activations and of weights, bound by path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import (
    BranchDropout,
    ChannelDropout,
    LockedDropout,
    Responding,
    ResponseEmbedding,
    ResponseLinear,
    SequenceDropout,
    StochasticDepth,
    UnitDropout,
)
from tune_stn.nn import self_tuning as convert
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

Network = Any  # of conftest.py

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)}, per_batch=["other"])
START = {"rate": 0.3, "other": 0.1}


def test_dropout_binds_by_path_and_by_pattern_first_match_first(control_flow: Network) -> None:
    model = convert(
        control_flow.make(), SPACE, start=START, dropout={"blocks.1.*": "other", "blocks.*": "rate"}, response=None
    )
    assert model.conversion.bound == {"blocks.0.2": "rate", "blocks.1.2": "other"}
    drop = model.network.get_submodule("drop")
    assert type(drop) is nn.Dropout  # named by nobody: it keeps its own rate
    assert drop.p == 0.5


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Dropout(), UnitDropout),
        (nn.Dropout1d(), ChannelDropout),
        (nn.Dropout2d(), ChannelDropout),
        (nn.Dropout3d(), ChannelDropout),
        (LockedDropout(), SequenceDropout),
        (StochasticDepth(), BranchDropout),
    ],
    ids=str,
)
def test_each_dropout_has_its_own_form(module: nn.Module, kind: type[UnitDropout]) -> None:
    model = convert(nn.Sequential(module), SPACE, start=START, dropout={"0": "rate"})
    assert type(model.network.get_submodule("0")) is kind


def test_bound_dropout_reads_the_current_sample_and_shared_ones_read_the_same() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Dropout(0.5)
            self.second = self.first

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.second(self.first(inputs))
            return outputs

    model = convert(Twice(), SPACE, start=START, dropout={"first": "rate"}).train()
    assert model.network.get_submodule("first") is model.network.get_submodule("second")
    ones = torch.ones(2, 50_000)
    torch.manual_seed(0)
    with model.using(Sample({"rate": torch.tensor([0.0, 0.5])})):
        kept = (model(ones) != 0).double().mean(1)
    assert float(kept[0]) == 1
    assert float(kept[1]) == pytest.approx(0.25, abs=0.01)
    dropped = model(ones).eq(0).double().mean()
    assert float(dropped) == pytest.approx(1 - 0.7**2, abs=0.01)  # the start value, twice


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ({"blocks.7": "rate"}, r"dropout path 'blocks\.7' matches no dropout module; there are: blocks\.0\.2"),
        ({"stem": "rate"}, r"dropout path 'stem' matches no dropout module"),
        ({"blocks.*": "rate", "head.*": "rate"}, r"dropout path 'head\.\*' matches no dropout module"),
        ({"drop": "dropout"}, r"dropout binds the unknown hyperparameter 'dropout'; the space has rate, other"),
    ],
)
def test_wrong_dropout_binding_is_refused_with_what_there_is(
    control_flow: Network, dropout: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(control_flow.make(), SPACE, start=START, dropout=dropout)


def test_a_model_without_dropout_says_so() -> None:
    with pytest.raises(ValueError, match="there is none in this model"):
        convert(nn.Linear(2, 2), SPACE, start=START, dropout={"0": "rate"})


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_of_a_bound_dropout_are_not_lost_silently(register: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    getattr(model[1], register)(lambda *args: None)
    message = r"'1' cannot be replaced by one that reads 'rate': has hooks, .* register them after the conversion"
    with pytest.raises(ValueError, match=message):
        convert(model, SPACE, start=START, dropout={"1": "rate"})
    assert "1" not in convert(model, SPACE, start=START).conversion.bound


def test_a_layer_with_a_dropout_of_its_own_reads_a_rate() -> None:
    """Beside its response, or with none."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    rates = {"self_attn": "rate", "dropout": "other"}
    model = convert(layer, SPACE, start=START, dropout=rates)
    assert model.conversion.bound == rates
    assert "self_attn" in model.conversion.responding
    plain = convert(layer, SPACE, start={"rate": 0.5, "other": 0.0}, dropout=rates, response=None, tuned=False)
    assert plain.conversion.bound == rates
    assert plain.conversion.plain["self_attn"] == "no response asked for"
    assert plain.response_parameters() == []
    assert plain.network.state_dict().keys() == layer.state_dict().keys()
    inputs = torch.randn(3, 5, 4)
    torch.testing.assert_close(plain.eval()(inputs), layer.eval()(inputs))
    plain.train()
    assert not torch.equal(plain(inputs), plain(inputs))


# Weights ----------------------------------------------------------------------------------------------------------


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 6), nn.Dropout(0.0), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 50))


@pytest.mark.parametrize("tuned", [True, False])
def test_weights_are_dropped_where_asked(tuned: bool) -> None:
    response = "gate" if tuned else None
    model = convert(language_model(), SPACE, start=START, weight_dropout={"*": "other"}, response=response, tuned=tuned)
    assert model.conversion.bound == dict.fromkeys(("0 (weights)", "2 (weights)", "4 (weights)"), "other")
    assert "2 (weights): reads other" in str(model.conversion)
    layers = [module for module in model.network.modules() if isinstance(module, Responding)]
    assert [type(layer) for layer in layers] == [ResponseEmbedding, ResponseLinear, ResponseLinear]
    assert {layer.weight_rate for layer in layers} == {"other"}
    assert {layer.size for layer in layers} == {response}
    words = torch.randint(50, (4, 7))
    with torch.no_grad():
        assert not torch.equal(model.train()(words), model(words))
        torch.testing.assert_close(model.eval()(words), language_model()(words))
    state = {f"network.{name}" for name in language_model().state_dict()}
    gates = {f"network.{i}.gate" for i in (0, 2, 4)} if tuned else set()
    assert {name for name in model.state_dict() if name.startswith("network.")} == state | gates


def test_weights_of_a_layer_that_gets_no_response_are_dropped_too() -> None:
    network = language_model()
    network[2].weight.requires_grad_(False)
    model = convert(network, SPACE, start=START, weight_dropout={"[24]": "other"}, response={"0": "full"})
    assert model.conversion.responding == {"0": "full"}
    assert model.conversion.plain == dict.fromkeys("234", "no response asked for")
    assert model.conversion.bound == {"2 (weights)": "other", "4 (weights)": "other"}
    assert {name for name, p in model.network.named_parameters() if not p.requires_grad} == {"2.weight"}


@pytest.mark.parametrize(
    ("weight_dropout", "message"),
    [
        ({"7": "other"}, r"weight_dropout path '7' matches no layer whose weights can be dropped; there are: 0, 2, 4$"),
        ({"2": "other", "3": "other"}, r"weight_dropout path '3' matches no layer"),
        ({"2": "drop"}, r"weight_dropout binds the unknown hyperparameter 'drop'; the space has rate, other"),
        ({"2": "rate"}, r"weight_dropout binds 'rate', .* name it in SearchSpace\(..., per_batch=\['rate'\]\)"),
    ],
)
def test_wrong_weight_binding_is_refused_with_what_to_do(weight_dropout: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(language_model(), SPACE, start=START, weight_dropout=weight_dropout)


def test_a_layer_that_cannot_be_replaced_does_not_lose_its_binding_silently() -> None:
    network = language_model()
    network[2].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="'2' cannot be replaced by one that reads 'other': has hooks"):
        convert(network, SPACE, start=START, weight_dropout={"2": "other"})
