"""Layers whose first axis is not the batch are found whatever the sizes are, and left plain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import LockedDropout, SelfTuningModel, self_tuning
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

SPACE = SearchSpace({"rate": Uniform(0.0, 0.9)})
START = {"rate": 0.1}


class Positions(nn.Module):
    """A small language model as in public teaching code: positions `(time,)`, or `(1, time)`."""

    def __init__(self, one_row: bool) -> None:
        super().__init__()
        self.one_row = one_row
        self.words, self.positions = nn.Embedding(30, 8), nn.Embedding(64, 8)
        self.dropout, self.inner, self.flat, self.head = nn.Dropout(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])
        positions = positions[None] if self.one_row else positions
        hidden = self.inner(self.dropout(self.words(ids) + self.positions(positions)))
        hidden = self.flat(hidden.flatten(0, 1)).view(hidden.shape)
        outputs: Tensor = self.head(hidden.mean(1))
        return outputs


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.locked, self.head = nn.LSTM(3, 4), LockedDropout(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.locked(self.lstm(x.transpose(0, 1))[0])[-1])
        return outputs


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize(("batch", "time"), [(5, 12), (12, 12), (1, 2), (2, 3)])
def test_a_table_of_positions_is_left_plain(one_row: bool, batch: int, time: int) -> None:
    """Also where there are as many positions as examples; and then no example sees the hyperparameters of another."""
    torch.manual_seed(0)
    model, ids = Positions(one_row), torch.randint(30, (batch, time))
    net = self_tuning(model, SPACE, start=START, dropout={"dropout": "rate"}, inputs=ids)
    shape = (1, time) if one_row else (time,)
    assert net.conversion.plain == {
        "positions": f"its first axis is not the batch: it sees {shape} of 2 examples",
        "flat": f"its first axis is not the batch: it sees ({2 * time}, 8) of 2 examples",
    }
    assert list(net.conversion.responding) == ["words", "inner", "head"]
    for parameter in net.response_parameters():
        nn.init.normal_(parameter)
    outputs = []
    for others in (0.0, 1.0):
        rows = torch.full((batch, 1), others)
        rows[0] = 0.5
        with net.eval().using(Sample({"rate": torch.full((batch,), 0.1)}, rows)):
            outputs.append(net(ids))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert batch == 1 or not torch.equal(outputs[0][1:], outputs[1][1:])


@pytest.mark.parametrize("one_row", [False, True])
def test_without_a_batch_it_is_found_when_training_begins(one_row: bool) -> None:
    """Here as many positions as examples, so no shape would tell."""
    net, ids = (
        self_tuning(Positions(one_row), SPACE, start=START, dropout={"dropout": "rate"}),
        torch.randint(30, (6, 6)),
    )
    with pytest.raises(
        ValueError, match=r"'positions' is to have hyperparameters for each example, but its first axis"
    ):
        net.train()(ids)
    with net.eval().using(net.perturbed_sample(6)), pytest.raises(ValueError, match="'positions' is to have hyper"):
        net(ids)
    net = self_tuning(
        Positions(one_row), SPACE, start=START, response={"positions": None, "flat": None, "*": "gate"}
    ).train()
    assert net(ids=ids).shape == (6, 2)
    assert net(ids).shape == (6, 2)  # it looks once


def test_layers_that_have_the_batch_second_respond() -> None:
    inputs = torch.randn(4, 5, 3)
    net = self_tuning(TimeFirst(), SPACE, start=START, dropout={"locked": "rate"}, inputs=(inputs,))
    assert list(net.conversion.responding) == ["lstm", "head"]
    assert net.train()(inputs).shape == (4, 2)


def test_a_dropout_that_reads_a_rate_for_each_example_is_refused() -> None:
    class Model(Positions):
        def forward(self, ids: Tensor) -> Tensor:
            outputs: Tensor = self.head((self.words(ids) + self.dropout(self.positions(torch.arange(4)))).mean(1))
            return outputs

    ids = torch.randint(30, (5, 4))
    message = r"the dropout 'dropout' reads 'rate'.*it sees \(4, 8\) of 2 examples.*per_batch=\['rate'\]"
    with pytest.raises(ValueError, match=message):
        self_tuning(Model(False), SPACE, start=START, dropout={"dropout": "rate"}, inputs=ids)
    shared = SearchSpace({"rate": Uniform(0.0, 0.9)}, per_batch=["rate"])
    net = self_tuning(Model(False), shared, start=START, dropout={"dropout": "rate"}, inputs=ids)
    assert "positions" in net.conversion.responding  # all rows are the same
    assert net.train()(ids).shape == (5, 2)


def test_looking_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    model[1].eval()
    state, inputs, random = model[1].running_mean.clone(), torch.randn(6, 4), torch.get_rng_state()
    with_inputs = self_tuning(model, SPACE, start=START, dropout={"2": "rate"}, inputs=inputs)
    without: SelfTuningModel = self_tuning(model, SPACE, start=START, dropout={"2": "rate"})
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[1].running_mean, state)
    assert [module.training for module in with_inputs.network] == [True, False, True]
    assert not any(module._forward_pre_hooks for module in with_inputs.modules())
    found = with_inputs.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in without.state_dict().items())
    with pytest.raises(ValueError, match="inputs: needs a tensor whose first axis is the batch"):
        self_tuning(model, SPACE, start=START, inputs=("x",))


class Direct(nn.Module):
    """One layer is called, of one the weight is read, of one both, and one is of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.both, self.idle = (nn.Linear(4, 4) for _ in range(4))
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x) @ self.read.weight.T
        return self.encoder(self.both(x.to(self.both.weight.dtype))[:, None])[:, 0]


def test_a_layer_whose_weight_other_code_reads_has_no_response_in_name_alone() -> None:
    space = SearchSpace({"rate": Uniform(0, 0.9)})
    model = Direct()
    net = self_tuning(model, space, start={"rate": 0.1}, inputs=torch.randn(5, 4), response="full", norms=True)
    assert net.conversion.plain == {"read": "the model reads its parameters directly and does not call it"}
    kinds = {path: type(module) for path, module in model.named_modules()}
    assert kinds == {path: type(module) for path, module in Direct().named_modules()}
    for parameter in net.response_parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 4)
    torch.testing.assert_close(net.eval().to_plain()(x), net(x))


class TiedEmbeddings(nn.Module):
    """As T5 has them: one table under three names, the first of which nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.encoder, self.decoder = (nn.Embedding(11, 4) for _ in range(3))
        self.encoder.weight = self.decoder.weight = self.shared.weight

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.encoder(ids) * self.decoder(ids)
        return outputs


def test_of_tied_embeddings_one_that_is_called_responds() -> None:
    space = SearchSpace({"rate": Uniform(0, 0.9)})
    net = self_tuning(TiedEmbeddings(), space, start={"rate": 0.1}, inputs=torch.randint(11, (5, 3)))
    assert set(net.conversion.responding) == {"encoder"}
    assert net.conversion.plain == {
        "shared": "the model calls another module with the same weight in its place",
        "decoder": "weight shared with shared, encoder",
    }
