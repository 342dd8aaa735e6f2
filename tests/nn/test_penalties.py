"""Weight decay against effective weights that are formed one example at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import ResponseLayer, ResponseSize, SelfTuningModel, WeightDecay, self_tuning
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

SPACE = SearchSpace({"weight_decay": Uniform(0, 1), "other": Uniform(0, 1)})
START = {"weight_decay": 0.5, "other": 0.5}
RATES = torch.tensor([0.1, 0.2, 0.9])


class Network(nn.Module):
    """Responding layers, plain ones of each sort, a free matrix, and a layer that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, 5)
        self.same_fc = self.fc
        self.plain = nn.Linear(5, 5)
        self.embedding = nn.Embedding(7, 5)
        self.decoder = nn.Linear(5, 7, bias=False)
        self.decoder.weight = self.embedding.weight
        self.mixture = nn.Parameter(torch.randn(3, 3))
        self.scale = nn.Parameter(torch.randn(3))


def make(size: ResponseSize) -> SelfTuningModel:
    torch.manual_seed(0)
    model = self_tuning(Network(), SPACE, start=START, response={"conv": size, "fc": size}).double()
    for parameter in model.response_parameters():
        nn.init.normal_(parameter)
    return model


def plain_norms(model: SelfTuningModel) -> Tensor:
    """Each matrix that does not respond, once: `plain`, the tied embedding, `mixture`; no bias, no norm."""
    network = model.network
    assert isinstance(network, Network)
    matrices: list[Tensor] = [network.plain.weight, network.embedding.weight, network.mixture]
    return torch.stack([matrix.square().sum() for matrix in matrices]).sum()


def effective_norm(layer: ResponseLayer, row: Tensor) -> Tensor:
    gates = layer.gate @ row
    unit = gates[: layer.weight.shape[0]].view(-1, *[1] * (layer.weight.dim() - 1))
    return (layer.weight + unit * layer.response_matrix()).square().sum()


@pytest.mark.parametrize("size", ["full", 2, "gate"])
def test_it_is_the_penalty_of_each_examples_own_weights(size: ResponseSize) -> None:
    model = make(size)
    rows = torch.randn(3, 2, dtype=torch.float64)
    penalty = WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}, rows))
    layers = list(model.response_layers())
    assert len(layers) == 2  # the layer in two places counts once
    expected = torch.stack(
        [
            rate / 2 * (plain_norms(model) + sum(effective_norm(layer, row) for layer in layers))
            for rate, row in zip(RATES.double(), rows, strict=True)
        ]
    )
    torch.testing.assert_close(penalty, expected)


def test_without_a_response_it_is_the_penalty_of_the_base() -> None:
    model = make("full")
    total = plain_norms(model) + sum(layer.weight.square().sum() for layer in model.response_layers())
    one = WeightDecay()(model.network, Sample({"weight_decay": torch.tensor([0.4]).double()}))
    torch.testing.assert_close(one, (0.2 * total)[None])
    several = WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}))
    torch.testing.assert_close(several, RATES.double() / 2 * total)


def test_a_shared_rate_meets_responses_of_each_example() -> None:
    """A weight decay that is drawn per batch, beside hyperparameters that are not."""
    model = make("gate")
    rows = torch.randn(3, 2, dtype=torch.float64)
    shared = WeightDecay()(model.network, Sample({"weight_decay": torch.tensor([0.4]).double()}, rows))
    each = WeightDecay()(model.network, Sample({"weight_decay": torch.full((3,), 0.4).double()}, rows))
    assert shared.shape == (3,)
    torch.testing.assert_close(shared, each, rtol=1e-6, atol=0)


def test_plain_network_and_its_gradient() -> None:
    """d/dW of rate / 2 * W^2 is rate * W: what SGD's own weight decay adds."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    penalty = WeightDecay()(network, Sample({"weight_decay": torch.tensor([0.3])}))
    assert penalty.shape == (1,)
    gradients = torch.autograd.grad(penalty.sum(), list(network.parameters()), allow_unused=True)
    for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
        if parameter.dim() == 2:
            assert gradient is not None
            torch.testing.assert_close(gradient, 0.3 * parameter.detach(), msg=name)
        else:
            assert gradient is None, name


def test_gradients_reach_the_response_input_and_the_response_parameters() -> None:
    model = make("full")
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    penalty = WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}, rows))
    matrices = [layer.response_weight for layer in model.response_layers()]
    gates = [layer.gate for layer in model.response_layers()]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(penalty.sum(), [rows, *matrices, *gates]))
    assert torch.autograd.gradcheck(
        lambda h: WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}, h)), [rows]
    )


def test_it_names_what_it_reads() -> None:
    assert WeightDecay().names == ("weight_decay",)
    assert WeightDecay("penalty").names == ("penalty",)
    network = nn.Linear(2, 2)
    sample = Sample({"penalty": torch.tensor([1.0]), "weight_decay": torch.tensor([0.0])})
    assert float(WeightDecay("penalty")(network, sample).detach()) > 0
