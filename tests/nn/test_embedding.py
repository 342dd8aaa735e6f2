"""Embeddings: the contract of all response layers, padding, dropped words, and tables that others share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import ResponseEmbedding, ResponseSize, SelfTuningModel, Slot
from tune_stn.nn import self_tuning as convert
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample
from tune_stn.testing import Case, ResponseLayerContract

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)}, per_batch=["rate"])
START = {"rate": 0.3, "other": 0.1}
SIZES: list[ResponseSize] = ["full", 2, "gate"]
each_size = pytest.mark.parametrize("size", SIZES)


class TestEmbedding(ResponseLayerContract):
    converted = ResponseEmbedding

    @pytest.fixture(autouse=True, params=[(), (3,), (2, 3)], ids=str)
    def extent(self, request: pytest.FixtureRequest) -> None:
        self.between: tuple[int, ...] = request.param

    def base(self) -> nn.Module:
        return nn.Embedding(5, 3, padding_idx=4)

    def inputs(self, batch: int) -> Tensor:
        """Without padding, whose gradient is not that of finite differences."""
        return torch.randint(4, (batch, *self.between))

    def effective_weights(self, case: Case, row: Tensor) -> list[Tensor]:
        layer = case.layer
        assert isinstance(layer, ResponseEmbedding)
        return [layer.weight.detach() + (layer.gate @ row[0]).detach() * layer.response_matrix().detach()]


def make(size: ResponseSize | None, **settings: Any) -> ResponseEmbedding:
    torch.manual_seed(0)
    layer = ResponseEmbedding(nn.Embedding(7, 3, **settings), 2, size, Slot(), torch.Generator().manual_seed(1))
    for name, parameter in layer.named_parameters():
        if name == "gate":
            nn.init.normal_(parameter)
    return layer


def look_up(layer: ResponseEmbedding, words: Tensor, h: Tensor | None, **values: float) -> Tensor:
    with layer.slot.using(Sample({name: torch.tensor([value]) for name, value in values.items()}, h)):
        outputs: Tensor = layer(words)
    return outputs


def test_the_equation_by_hand() -> None:
    layer = make("full")
    words, h = torch.tensor([[1, 1, 6], [0, 2, 1]]), torch.randn(2, 2)
    outputs = look_up(layer, words, h)
    for row in range(2):
        for position in range(3):
            word = words[row, position]
            expected = layer.weight[word] + (layer.gate @ h[row]) * layer.response_weight[word]
            torch.testing.assert_close(outputs[row, position], expected)


@each_size
def test_low_rank_and_bounds(size: ResponseSize) -> None:
    """V is drawn as language models draw their tables: uniform in ±0.1, or products of that variance."""
    table = nn.Embedding(1000, 50)
    layer = ResponseEmbedding(table, 2, size, Slot(), torch.Generator().manual_seed(1))
    if size == "gate":
        assert layer.response_matrix() is table.weight
    else:
        assert layer.response_matrix().shape == table.weight.shape
        assert float(layer.response_matrix().detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.2)


@each_size
def test_the_row_of_padding_stays_as_it_is_and_has_no_gradient(size: ResponseSize) -> None:
    """Even where it is not zero: its output is that of torch at any hyperparameters."""
    layer = make(size, padding_idx=-2)
    assert layer.padding_idx == 5
    with torch.no_grad():
        layer.weight[5] = 3.0
    words, h = torch.tensor([[1, 5], [5, 5]]), torch.randn(2, 2)
    for rows in (None, h, h[:1]):
        outputs = look_up(layer, words, rows)
        assert torch.equal(outputs[words == 5], torch.full((3, 3), 3.0))
    only_padding = look_up(layer, words[1:], h[1:]).square().sum()
    for gradient in torch.autograd.grad(only_padding, list(layer.parameters())):
        assert not gradient.any()


@pytest.mark.parametrize("per_example", [True, False])
def test_gradients_are_scaled_by_frequency_as_in_torch(per_example: bool) -> None:
    layer = make("gate", scale_grad_by_freq=True)
    words, h = torch.tensor([[1, 5], [5, 5]]), torch.randn(2, 2)
    loss = look_up(layer, words, h if per_example else None).sum()
    (gradient,) = torch.autograd.grad(loss, [layer.weight])
    scale = 1 + h @ layer.gate.T if per_example else torch.ones(2, 3)
    torch.testing.assert_close(gradient[1], scale[0])
    torch.testing.assert_close(gradient[5], (scale[0] + 2 * scale[1]) / 3)


def test_words_are_dropped_whole_and_the_same_ones_in_the_whole_batch() -> None:
    torch.manual_seed(0)
    layer = ResponseEmbedding(nn.Embedding(500, 3), 2, "gate", Slot(), torch.Generator())
    layer.weight_rate = "rate"
    words = torch.arange(500).repeat(4, 2)
    h = torch.randn(4, 2)
    plain = look_up(layer.eval(), words, h, rate=0.4)
    layer.train()
    for rows in (None, h, h[:1]):
        outputs = look_up(layer, words, rows, rate=0.4)
        kept = outputs.ne(0).any(-1)
        assert torch.equal(kept, kept[:1, :500].repeat(4, 2))
        assert float(kept[0].double().mean()) == pytest.approx(0.6, abs=0.07)
        torch.testing.assert_close(outputs[kept], plain[kept] / 0.6)
        assert not torch.equal(kept, look_up(layer, words, rows, rate=0.4).ne(0).any(-1))  # drawn afresh


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_norm": 1.0}, "max_norm rescales its weight in place during the forward pass"),
        ({"sparse": True}, "sparse=True: its response would have no sparse gradient"),
    ],
)
def test_tables_that_stay_plain(settings: dict[str, Any], reason: str) -> None:
    model = convert(nn.Sequential(nn.Embedding(7, 3, **settings), nn.Linear(3, 2)), SPACE, start=START)
    assert model.conversion.plain == {"0": reason}
    with pytest.raises(ValueError, match="'0' cannot be replaced by one that reads 'rate': .*" + reason[:9]):
        convert(nn.Sequential(nn.Embedding(7, 3, **settings)), SPACE, start=START, weight_dropout={"0": "rate"})


# Ties -------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A language model whose decoder is its table, with a second table that is one more user of it."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(6, 11)
        self.embedding = nn.Embedding(11, 6)
        self.again = nn.Embedding(11, 6)
        self.decoder.weight = self.again.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.decoder(torch.tanh(self.embedding(tokens) + self.again(tokens)))
        return outputs


def tied(**settings: Any) -> tuple[SelfTuningModel, Tied]:
    torch.manual_seed(0)
    model = convert(Tied(), SPACE, start=START, **settings)
    network = model.network
    assert isinstance(network, Tied)
    return model, network


def assert_tied(network: Tied) -> None:
    assert network.decoder.weight is network.embedding.weight
    assert network.again.weight is network.embedding.weight


def test_of_a_tied_weight_the_first_embedding_responds() -> None:
    """As in the papers: the decoder uses the base weight only."""
    model, network = tied(response="full")
    assert model.conversion.responding == {"embedding": "full"}
    assert model.conversion.plain == {
        "decoder": "weight shared with embedding, again",
        "again": "weight shared with decoder, embedding",
    }
    assert isinstance(network.embedding, ResponseEmbedding)
    assert type(network.again) is nn.Embedding


def test_a_tie_outlives_conversion_copies_moves_and_loading() -> None:
    model, network = tied(response="full")
    assert_tied(network)
    assert sum(p is network.decoder.weight for p in model.base_parameters()) == 1
    assert len(list(network.parameters())) == len(set(network.parameters())) == 4  # with the decoder's bias
    for other in (copy.deepcopy(model), model.double(), model.to("cpu"), model.float()):
        assert isinstance(other.network, Tied)
        assert_tied(other.network)
    state = model.state_dict()
    other, loaded = tied(response="full")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state, strict=True)
    assert_tied(loaded)
    words = torch.tensor([[1, 2], [10, 4]])
    assert torch.equal(other(words), model(words))


def test_a_step_of_an_optimizer_moves_all_holders_of_a_tied_weight() -> None:
    model, network = tied()
    before = network.decoder.weight.detach().clone()
    optimizer = torch.optim.SGD(model.base_parameters(), lr=0.1)
    with model.using(model.perturbed_sample(2)):
        model(torch.tensor([[1, 2], [10, 4]])).square().sum().backward()
    optimizer.step()
    assert_tied(network)
    assert not torch.equal(network.decoder.weight, before)


def test_words_of_a_tied_table_are_dropped_where_they_are_read_only() -> None:
    model, network = tied(weight_dropout={"embedding": "rate"}, response=None, tuned=False)
    assert model.conversion.bound == {"embedding (weights)": "rate"}
    assert isinstance(network.embedding, ResponseEmbedding)
    assert network.embedding.size is None
    assert_tied(network)
    assert type(network.decoder) is nn.Linear
