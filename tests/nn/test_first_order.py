"""Predictions to first order, against finite differences of the response input."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from tune_stn.nn.first_order import (
    evaluating,
    first_order,
    map_tensors,
    to_first_order,
    without_running_statistics,
)
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.observe import observing
from tune_stn.nn.self_tuning import self_tuning
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

ROWS, NAMES = 4, ("a", "b")
VALUES = {name: torch.full((1,), 0.5) for name in NAMES}


def network() -> SelfTuningModel:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    space = SearchSpace({name: Uniform(0.0, 1.0) for name in NAMES})
    model = self_tuning(plain, space, start=dict.fromkeys(NAMES, 0.5), response="full", centred=True)
    model = model.double()
    with torch.no_grad():
        for parameter in model.response_parameters():  # gates begin at zero
            parameter.copy_(torch.randn_like(parameter))
    return model


def at(model: SelfTuningModel, offsets: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of the network and of its hidden layer."""
    with model.using(Sample(VALUES, offsets)), observing(model.network, ["1"]) as seen:
        return model(inputs), seen["1"][0]


def test_value_plus_the_change_by_the_response() -> None:
    """Of the outputs, and of what is observed on the way."""
    model = network()
    inputs, offsets = torch.randn(ROWS, 3, dtype=torch.float64), torch.randn(ROWS, 2, dtype=torch.float64)
    with (
        model.using(Sample(VALUES, offsets, linearise=True)),
        observing(model.network, ["1"], to_first_order) as seen,
    ):
        found = first_order(model)(inputs), seen["1"][0]
    step = 1e-6
    values, ahead, behind = (at(model, share * offsets, inputs) for share in (0.0, step, -step))
    for one, value, up, down in zip(found, values, ahead, behind, strict=True):
        torch.testing.assert_close(one, value + (up - down) / (2 * step), rtol=0, atol=1e-8)


def test_outputs_of_every_form_are_mapped() -> None:
    one = torch.ones(2)
    mapped = map_tensors(torch.neg, {"a": (one, [one]), "b": None, "c": 3})
    assert torch.equal(mapped["a"][0], -one)
    assert torch.equal(mapped["a"][1][0], -one)
    assert (mapped["b"], mapped["c"]) == (None, 3)


class Pair(NamedTuple):
    one: Tensor
    other: Tensor | None


@dataclass
class Outputs:
    logits: Tensor
    pair: Pair
    name: str = "x"


class Named(dict[str, Any]):
    """As in much code: `outputs.logits`."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def test_a_mapping_of_the_users_own_keeps_its_type() -> None:
    given = Named(logits=torch.ones(2), more=(torch.ones(1), None))
    mapped = map_tensors(torch.neg, given)
    assert type(mapped) is Named
    assert torch.equal(mapped.logits, -torch.ones(2))
    assert torch.equal(mapped.more[0], -torch.ones(1))
    assert torch.equal(given.logits, torch.ones(2))


def test_containers_keep_their_type() -> None:
    one = torch.ones(2)
    mapped = map_tensors(torch.neg, OrderedDict(a=Outputs(one, Pair(one, None), "y"), b=[one]))
    assert type(mapped) is OrderedDict
    assert type(mapped["a"]) is Outputs
    assert type(mapped["a"].pair) is Pair
    assert mapped["a"].name == "y"
    for found in (mapped["a"].logits, mapped["a"].pair.one, *mapped["b"]):
        assert torch.equal(found, -one)
    assert mapped["a"].pair.other is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_plain_tensor_stays(dtype: torch.dtype) -> None:
    output = torch.ones(2, dtype=dtype)
    found = to_first_order(output)
    assert found.dtype == dtype
    assert torch.equal(found, output)


def test_a_look_does_not_go_on_with_running_statistics() -> None:
    """Of batch norms, and of both spectral norms of torch."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), spectral_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))
    model = nn.Sequential(*layers, nn.BatchNorm1d(4))
    x = torch.randn(5, 3)
    for _ in range(2):
        before = {name: value.clone() for name, value in model.state_dict().items() if value.shape != ()}
        with without_running_statistics(model):
            model(x)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        model(x)
        moved = {
            name.split(".")[0] for name, value in before.items() if not torch.equal(value, model.state_dict()[name])
        }
        assert moved == {"1", "2", "3"}


class Merging(nn.Linear):
    """Does more in evaluation mode than to set it, as adapters do that merge their weights."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        return super().train(mode)


def test_after_an_evaluation_each_module_is_as_before() -> None:
    model = nn.Sequential(Merging(2, 2), nn.Dropout().eval(), nn.Dropout())
    with evaluating(model):
        assert model[0].merged
        assert not any(module.training for module in model.modules())
    assert not model[0].merged
    assert [module.training for module in model] == [True, False, True]
