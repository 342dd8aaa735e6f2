"""Tangents of whole networks: what a response step of Delta-STN sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn import ResponseSize, SelfTuningModel
from tune_stn.nn import self_tuning as convert
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.3, "other": 0.1}


def stir(model: SelfTuningModel) -> SelfTuningModel:
    """Give it a response that is not zero."""
    torch.manual_seed(2)
    for name, parameter in model.network.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter, std=0.5)
    return model


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(),
        nn.Conv2d(3, 4, 2, groups=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@pytest.mark.parametrize(
    ("make", "shape", "dropout"), [(mlp, (4, 5), "2"), (cnn, (4, 1, 6, 6), "3")], ids=["mlp", "cnn"]
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_tangent_of_a_network_is_its_jacobian_product(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dropout: str, size: ResponseSize, training: bool
) -> None:
    """J_h f(x; 0) h against double backward and against finite differences, dropout with a mask that stays."""
    torch.manual_seed(0)
    model = convert(make(), SPACE, start=START, dropout={dropout: "rate"}, response=size).double()
    model.train(training)
    stir(model)
    inputs = torch.randn(shape, dtype=torch.float64)
    h = torch.randn(shape[0], 2, dtype=torch.float64)
    values = {"rate": torch.tensor([0.3]), "other": torch.tensor([0.3])}

    def f(response_input: Tensor | None, *, linearise: bool = False) -> Tensor:
        torch.manual_seed(5)
        with model.using(Sample(values, response_input, linearise)):
            outputs: Tensor = model(inputs)
        return outputs

    with forward_ad.dual_level():
        dual = f(h, linearise=True)
        primal, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    zero = torch.zeros_like(h)
    torch.testing.assert_close(primal, f(None))
    at_zero, by_double_backward = torch.autograd.functional.jvp(f, zero, h)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(primal, at_zero)
    torch.testing.assert_close(tangent, by_double_backward, rtol=1e-9, atol=1e-11)
    step = 1e-6
    torch.testing.assert_close(tangent, (f(step * h) - f(-step * h)) / (2 * step), rtol=1e-5, atol=1e-8)
    assert float(tangent.detach().abs().max()) > 1e-3


def test_gradients_through_a_tangent_are_those_of_double_backward(size: ResponseSize) -> None:
    """What a response step differentiates: a loss of primal + tangent, by the response parameters."""
    torch.manual_seed(0)
    model = stir(convert(mlp(), SPACE, start=START, response=size).double().eval())
    inputs, h = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    parameters = model.response_parameters()

    def f(response_input: Tensor, linearise: bool = False) -> Tensor:
        with model.using(Sample({}, response_input, linearise)):
            outputs: Tensor = model(inputs)
        return outputs

    with forward_ad.dual_level():
        primal, tangent = forward_ad.unpack_dual(f(h, linearise=True))  # type: ignore[no-untyped-call]
        ours = torch.autograd.grad((primal + tangent).square().sum(), parameters, allow_unused=True)
    zero = torch.zeros_like(h)
    value, product = torch.autograd.functional.jvp(f, zero, h, create_graph=True)  # type: ignore[no-untyped-call]
    theirs = torch.autograd.grad((value + product).square().sum(), parameters, allow_unused=True)
    for left, right in zip(ours, theirs, strict=True):
        assert left is not None
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)
