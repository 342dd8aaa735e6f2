"""Penalties against effective weights and activations that are formed one example at a time."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import ResponseLayer, ResponseSize, SelfTuningModel, WeightDecay, self_tuning
from tune_stn.nn.penalties import ActivationNorm, TemporalActivationNorm
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
    penalty = WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}, rows), {})
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
    one = WeightDecay()(model.network, Sample({"weight_decay": torch.tensor([0.4]).double()}), {})
    torch.testing.assert_close(one, (0.2 * total)[None])
    several = WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}), {})
    torch.testing.assert_close(several, RATES.double() / 2 * total)


def test_a_shared_rate_meets_responses_of_each_example() -> None:
    """A weight decay that is drawn per batch, beside hyperparameters that are not."""
    model = make("gate")
    rows = torch.randn(3, 2, dtype=torch.float64)
    shared = WeightDecay()(model.network, Sample({"weight_decay": torch.tensor([0.4]).double()}, rows), {})
    each = WeightDecay()(model.network, Sample({"weight_decay": torch.full((3,), 0.4).double()}, rows), {})
    assert shared.shape == (3,)
    torch.testing.assert_close(shared, each, rtol=1e-6, atol=0)


def test_plain_network_and_its_gradient() -> None:
    """d/dW of rate / 2 * W^2 is rate * W: what SGD's own weight decay adds."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    penalty = WeightDecay()(network, Sample({"weight_decay": torch.tensor([0.3])}), {})
    assert penalty.shape == (1,)
    gradients = torch.autograd.grad(penalty.sum(), list(network.parameters()), allow_unused=True)
    for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
        if parameter.dim() == 2:
            assert gradient is not None
            torch.testing.assert_close(gradient, 0.3 * parameter.detach(), msg=name)
        else:
            assert gradient is None, name


def test_it_adds_the_squares_as_torch_does() -> None:
    """To the last bit, forward and backward; a frozen weight counts and gets no gradient."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 4), nn.Linear(4, 2))
    network[1].weight.requires_grad_(False)
    rates = torch.tensor([0.3, 0.1, 0.7])
    weights = [network[0].weight, network[1].weight, network[2].weight]
    total = torch.zeros(1)
    for weight in weights:
        total = total + weight.square().sum()
    found, expected = WeightDecay()(network, Sample({"weight_decay": rates}), {}), rates / 2 * total
    assert torch.equal(found, expected)
    trained = [weights[0], weights[2]]
    pairs = zip(*(torch.autograd.grad(p.mean(), trained) for p in (found, expected)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    network[0].weight.requires_grad_(False)
    WeightDecay()(network, Sample({"weight_decay": rates}), {}).sum().backward()
    assert [parameter.grad is not None for parameter in network.parameters()] == [False, False, False, True, False]


def test_gradients_reach_the_response_input_and_the_response_parameters() -> None:
    model = make("full")
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    penalty = WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}, rows), {})
    matrices = [layer.response_weight for layer in model.response_layers()]
    gates = [layer.gate for layer in model.response_layers()]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(penalty.sum(), [rows, *matrices, *gates]))
    assert torch.autograd.gradcheck(
        lambda h: WeightDecay()(model.network, Sample({"weight_decay": RATES.double()}, h), {}), [rows]
    )


def test_it_names_what_it_reads() -> None:
    assert WeightDecay().names == ("weight_decay",)
    assert WeightDecay("penalty").names == ("penalty",)
    network = nn.Linear(2, 2)
    sample = Sample({"penalty": torch.tensor([1.0]), "weight_decay": torch.tensor([0.0])})
    assert float(WeightDecay("penalty")(network, sample, {}).detach()) > 0


@pytest.mark.parametrize("only", ["same_fc.weight", "*.bias", "cnv.*", "norm", "con"])
def test_a_penalty_on_nothing_is_refused(only: str) -> None:
    """A shared module counts by its first path; biases and norms are never decayed."""
    model = make("full")
    weights = "mixture, conv.weight, fc.weight, plain.weight, embedding.weight"
    with pytest.raises(
        ValueError, match=f"{re.escape(repr(only))}\\) matches no weight of the network; it has {weights}$"
    ):
        WeightDecay("other", only=only)(model.network, Sample({"other": torch.tensor([0.4]).double()}), {})


@pytest.mark.parametrize("size", ["full", 2, "gate", None])
def test_a_penalty_on_a_part_of_a_layer_counts_that_part(size: ResponseSize | None) -> None:
    """The sum over the parts is the whole; and the base of a part, where nothing responds, its plain square."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, num_layers=2)
            self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
            self.other = nn.MultiheadAttention(4, 2, kdim=3, vdim=2)

    torch.manual_seed(0)
    model = self_tuning(Both(), SPACE, start=START, response=size).double()
    for parameter in model.response_parameters():
        nn.init.normal_(parameter)
    rate, row = torch.ones(1).double(), torch.randn(1, 2).double()

    def penalty(only: str, row: Tensor | None = row) -> Tensor:
        return WeightDecay("other", only=only)(model.network, Sample({"other": rate}, row), {})

    base = dict(Both().named_parameters())
    paths = [path for path, parameter in base.items() if parameter.dim() >= 2]
    assert len(paths) == 4 + 4 + 4
    torch.testing.assert_close(torch.stack([penalty(path) for path in paths]).sum(0), penalty("*"))
    for path in paths:
        expected = model.network.get_parameter(path).square().sum()[None] / 2
        torch.testing.assert_close(penalty(path, None), expected)
        if size is not None and not path.endswith(("bias_k", "bias_v")):
            assert not torch.allclose(penalty(path), expected)


@pytest.mark.parametrize(
    ("only", "decayed"),
    [
        ("*", ["conv", "fc", "plain", "embedding", "mixture"]),
        ("conv.*", ["conv"]),
        ("fc.weight", ["fc"]),
        ("plain*", ["plain"]),
        ("mixture", ["mixture"]),
        ("[cp]*", ["conv", "plain"]),
        ("fc", ["fc"]),
    ],
)
def test_only_the_named_parameters_are_decayed(only: str, decayed: list[str]) -> None:
    """Each group may have a strength of its own, responding or not."""
    model = make("full")
    row = torch.randn(1, 2, dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for path in decayed:
        if path == "mixture":
            expected = expected + model.network.get_parameter(path).square().sum()
            continue
        layer = model.network.get_submodule(path)
        if isinstance(layer, ResponseLayer):
            expected = expected + effective_norm(layer, row[0])
        else:
            expected = expected + layer.get_parameter("weight").square().sum()
    penalty = WeightDecay("other", only=only)
    assert penalty.names == ("other",)
    found = penalty(model.network, Sample({"other": torch.tensor([0.4]).double()}, row), {})
    torch.testing.assert_close(found.sum(), 0.2 * expected)


@pytest.mark.parametrize("size", ["full", 2, "gate"])
@pytest.mark.parametrize("responding", [True, False])
def test_norms_are_spared(size: ResponseSize, responding: bool) -> None:
    """Also where their affine part responds, and so has matrices of its own, or has several axes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm((4, 2, 2)))
    model = self_tuning(network, SPACE, start=START, response=size, norms=responding)
    for parameter in model.response_parameters():
        nn.init.normal_(parameter)
    assert (len(list(model.response_layers())) == 4) is responding
    rows = torch.randn(3, 2)
    penalty = WeightDecay()(model.network, Sample({"weight_decay": RATES}, rows), {})
    layer = model.network.get_submodule("0")
    assert isinstance(layer, ResponseLayer)
    expected = torch.stack([rate / 2 * effective_norm(layer, row) for rate, row in zip(RATES, rows, strict=True)])
    torch.testing.assert_close(penalty, expected)


# Activations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "batch_axis"), [((3, 4), 0), ((3, 4, 5), 0), ((6, 3, 2), 1), ((3,), 0), ((2, 5, 3), -1)]
)
@pytest.mark.parametrize("calls", [1, 2])
def test_activation_norm_is_the_mean_square_of_each_example(
    shape: tuple[int, ...], batch_axis: int, calls: int
) -> None:
    """A module that is called twice counts twice."""
    torch.manual_seed(0)
    outputs = [torch.randn(shape) for _ in range(calls)]
    penalty = ActivationNorm("alpha", "lstm", batch_axis=batch_axis)
    found = penalty(nn.Identity(), Sample({"alpha": RATES}), {"lstm": outputs, "other": [torch.ones(1)]})
    assert found.shape == (3,)
    for i, rate in enumerate(RATES.tolist()):
        entries = [output.select(batch_axis, i).flatten().tolist() for output in outputs]
        expected = rate * sum(sum(x**2 for x in own) / len(own) for own in entries)
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "batch_axis", "time_axis"), [((3, 4, 5), 0, 1), ((4, 3, 5), 1, 0), ((3, 2, 6), 0, 2), ((3, 1, 5), 0, 1)]
)
@pytest.mark.parametrize("calls", [1, 2])
def test_temporal_norm_is_the_mean_square_of_each_examples_changes(
    shape: tuple[int, ...], batch_axis: int, time_axis: int, calls: int
) -> None:
    """Of a sequence of one step there are none."""
    torch.manual_seed(0)
    outputs = [torch.randn(shape) for _ in range(calls)]
    penalty = TemporalActivationNorm("beta", "lstm", batch_axis=batch_axis, time_axis=time_axis)
    found = penalty(nn.Identity(), Sample({"beta": RATES}), {"lstm": outputs})
    for i, rate in enumerate(RATES.tolist()):
        expected = 0.0
        for output in outputs:
            own = output.movedim((batch_axis, time_axis), (0, 1))[i]
            squares = [
                float((own[t + 1].flatten()[k] - own[t].flatten()[k]) ** 2)
                for t in range(own.shape[0] - 1)
                for k in range(own[0].numel())
            ]
            expected += rate * sum(squares) / max(len(squares), 1)
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [ActivationNorm, TemporalActivationNorm])
def test_a_shared_strength_meets_activations_of_each_example(kind: Any) -> None:
    outputs = torch.randn(3, 4, 5)
    shared = kind("alpha", "x")(nn.Identity(), Sample({"alpha": torch.tensor([0.4])}), {"x": [outputs]})
    each = kind("alpha", "x")(nn.Identity(), Sample({"alpha": torch.full((3,), 0.4)}), {"x": [outputs]})
    assert shared.shape == (3,)
    torch.testing.assert_close(shared, each)
    assert kind("alpha", "x").names == ("alpha",)
    assert kind("alpha", "x").paths == ("x",)
    assert WeightDecay().paths == ()


def test_gradient_of_the_activation_norms() -> None:
    outputs = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    sample = Sample({"alpha": RATES.double()})
    for penalty in (ActivationNorm("alpha", "x"), TemporalActivationNorm("alpha", "x")):
        assert torch.autograd.gradcheck(lambda x, p=penalty: p(nn.Identity(), sample, {"x": [x]}), [outputs])
