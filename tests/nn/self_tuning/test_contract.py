"""The contract of the conversion, for every network of the zoo (conftest.py)."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from tune_stn.nn import Responding, ResponseSize, SelfTuningModel, UnitDropout
from tune_stn.nn import self_tuning as convert
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

Network = Any  # of conftest.py

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.3, "other": 0.1}


def test_what_is_converted_is_listed_and_what_is_left_plain_is_listed_with_a_reason(
    network: Network, size: ResponseSize
) -> None:
    model = network.converted(size)
    words = size if isinstance(size, str) else f"rank {size}"
    assert model.conversion.responding == dict.fromkeys(network.responding, words)
    assert model.conversion.plain == network.plain
    assert model.conversion.bound == network.bound
    for path in network.responding:
        assert isinstance(model.network.get_submodule(path), Responding)
    for path, name in network.bound.items():
        module = model.network.get_submodule(path)
        assert isinstance(module, UnitDropout)
        assert module.rate == name
    listed = network.responding | set(network.plain)
    own = {path for path, m in network.original().named_modules() if list(m.parameters(recurse=False))}
    own -= {path for path in own if any(path.startswith(f"{parent}.") for parent in network.responding if parent)}
    assert listed == own  # nothing with parameters goes unmentioned
    text = str(model.conversion)
    assert all(f"{path or 'the model itself'}: " in text for path in listed)
    assert all(f"{path}: reads {name}" in text for path, name in network.bound.items())


def test_zero_response_is_the_original(network: Network, size: ResponseSize) -> None:
    """In eval mode at any hyperparameters, for U starts at zero, and exactly so at a zero response input."""
    plain, model = network.original().eval(), network.converted(size).eval()
    inputs = network.inputs()
    with torch.no_grad():
        expected = plain(inputs)
        with model.using(model.hyper.constant_sample()):
            assert torch.equal(model(inputs), expected)
        torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)
        with model.using(model.perturbed_sample(len(inputs))):
            torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)


def test_original_is_untouched(network: Network) -> None:
    plain = network.original()
    modules, state = dict(plain.named_modules()), copy.deepcopy(plain.state_dict())
    flags = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    model = convert(plain, SPACE, start=START, dropout=network.dropout)
    train(model, network.inputs())
    assert {path: id(module) for path, module in plain.named_modules()} == {p: id(m) for p, m in modules.items()}
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in plain.named_parameters()} == flags
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in model.parameters()}


def train(model: SelfTuningModel, inputs: Tensor, steps: int = 2) -> None:
    """A little of STN: weights and responses by the perturbed loss, hyperparameters by the loss in eval mode."""
    weights = [*model.base_parameters(), *model.response_parameters()]
    optimizer = torch.optim.SGD([*weights, *model.hyper.parameters()], lr=0.05)
    torch.manual_seed(4)
    for _ in range(steps):
        for keep_graph in (False, True):
            model.train(not keep_graph)
            with model.using(model.perturbed_sample(len(inputs), keep_graph=keep_graph)):
                loss = model(inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_training_moves_all_that_is_trainable_and_nothing_else(network: Network, size: ResponseSize) -> None:
    """In double precision: a response that has just left zero moves by less than single precision can add to it."""
    model = network.converted(size).double()
    inputs = network.inputs()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, inputs.double() if inputs.is_floating_point() else inputs, steps=3)
    for name, parameter in model.named_parameters():
        # Of two heads, a batch takes one; and a bias of all keys alike changes no attention.
        unused = "heads." in name or name.endswith("projections.1.response_bias")
        moved = not torch.equal(parameter.detach(), before[name])
        assert unused or moved == parameter.requires_grad, name
        assert bool(torch.isfinite(parameter).all())


@pytest.mark.slow
def test_saved_state_is_plain_tensors_and_loads_into_another(network: Network, size: ResponseSize) -> None:
    model = network.converted(size)
    train(model, network.inputs())
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(99)
    other = convert(network.make(), SPACE, start={"rate": 0.5, "other": 0.5}, dropout=network.dropout, response=size)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    inputs = network.inputs()
    with torch.no_grad():
        assert torch.equal(other.eval()(inputs), model.eval()(inputs))
    assert other.hyper.mean_values() == model.hyper.mean_values()


def test_parameters_are_either_base_or_response_each_once(network: Network) -> None:
    model = network.converted("full")
    base, response = model.base_parameters(), model.response_parameters()
    ids = [id(parameter) for parameter in (*base, *response)]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.network.parameters() if p.requires_grad}
    plain = sum(p.numel() for p in network.original().parameters() if p.requires_grad)
    assert sum(parameter.numel() for parameter in base) == plain


def test_base_weights_and_global_stream_are_those_of_the_plain_network(network: Network, size: ResponseSize) -> None:
    """Every method starts from the same weights at a seed, and draws the same noise after."""
    plain = network.original()
    state = torch.get_rng_state()
    model = convert(plain, SPACE, start=START, dropout=network.dropout, response=size, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = dict(plain.named_parameters())
    ours = dict(model.network.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_merged_response_is_that_response_for_each_example(network: Network) -> None:
    model = network.converted(2, stirred=True).eval()
    inputs = network.inputs()
    row = torch.tensor([[0.4, -1.2]])
    values = model.hyper.constant_sample().values
    with torch.no_grad():
        with model.using(Sample(values, row)):
            merged = model(inputs)
        with model.using(Sample(values, row.expand(len(inputs), -1))):
            expanded = model(inputs)
        with model.using(Sample(values)):
            plain = model(inputs)
    torch.testing.assert_close(merged, expanded, rtol=1e-4, atol=1e-5)
    assert float((merged - plain).abs().max()) > 1e-3


def test_example_depends_on_its_own_hyperparameters_only(network: Network) -> None:
    model = network.converted(stirred=True).eval()
    inputs = network.inputs()
    rows = torch.randn(len(inputs), 2)
    changed = rows.clone()
    changed[2] += 1
    outputs = []
    with torch.no_grad():
        for response_input in (rows, changed):
            with model.using(Sample({}, response_input)):
                outputs.append(model(inputs))
    others = [0, 1, 3, 4]
    torch.testing.assert_close(outputs[0][others], outputs[1][others])
    assert not torch.allclose(outputs[0][2], outputs[1][2])


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_kept(network: Network, training: bool) -> None:
    plain = network.original().train(training)
    model = convert(plain, SPACE, start=START, dropout=network.dropout)
    assert model.training == training
    assert {module.training for module in model.network.modules()} == {training}


def test_copies_have_a_slot_of_their_own(network: Network) -> None:
    model = network.converted()
    twin = copy.deepcopy(model)
    with model.using(model.mean_sample()):
        assert not twin.slot.is_set
        assert torch.equal(twin.eval()(network.inputs()), model.eval()(network.inputs()))
    assert all(layer.slot is twin.slot for layer in twin.response_layers())
