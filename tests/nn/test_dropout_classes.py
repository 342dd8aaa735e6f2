"""Dropout classes beside `nn.Dropout`: each is recognised and drops by its own law, each example at its own rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from tune_stn.nn import (
    AlphaDropout,
    BranchDropout,
    ChannelAlphaDropout,
    ChannelDropout,
    SelfTuningModel,
    UnitDropout,
    self_tuning,
)
from tune_stn.nn.dropout import MAX_RATE
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample

SPACE = SearchSpace({"rate": Uniform(0, 1)})
MANY = 50_000


class Mine(nn.Dropout):
    """A user's own, the same in all but its name."""


class MinesToo(Mine):
    def __init__(self) -> None:
        super().__init__(0.3)


class MyChannels(nn.Dropout2d):
    """Another."""


class Other(nn.Dropout):
    """One that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(torch.ones_like(x), self.p, self.training)


class DropPath(nn.Module):
    """As timm has it."""

    def __init__(self, drop_prob: float = 0.1, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep if self.scale_by_keep else mask)


class SwinDropPath(nn.Module):
    """As transformers has it."""

    def __init__(self, drop_prob: float | None = None) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: Tensor) -> Tensor:
        raise AssertionError("this one is replaced")


class StochasticDepth(nn.Module):
    """As torchvision has it."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, input: Tensor) -> Tensor:
        size = [input.shape[0]] + [1] * (input.dim() - 1) if self.mode == "row" else [1] * input.dim()
        return input * input.new_empty(size).bernoulli_(1 - self.p).div_(1 - self.p)


def converted(module: nn.Module) -> SelfTuningModel:
    """A network whose module `drop` reads the rate."""
    network = nn.ModuleDict({"drop": module, "out": nn.Linear(2, 2)})
    return self_tuning(network, SPACE, start={"rate": 0.5}, dropout={"drop": "rate"})


def outputs_of(module: nn.Module, inputs: Tensor, rates: list[float], *, seed: int = 0) -> Tensor:
    """Of what replaces `module`, at these rates."""
    net = converted(module)
    torch.manual_seed(seed)
    with net.using(Sample({"rate": torch.tensor(rates)})):
        outputs: Tensor = net.network.get_submodule("drop")(inputs)
    return outputs


@pytest.mark.parametrize(
    ("module", "form", "number"),
    [
        (Mine(), UnitDropout, "p"),
        (MinesToo(), UnitDropout, "p"),
        (MyChannels(), ChannelDropout, "p"),
        (nn.AlphaDropout(), AlphaDropout, "p"),
        (nn.FeatureAlphaDropout(), ChannelAlphaDropout, "p"),
        (DropPath(), BranchDropout, "drop_prob"),
        (SwinDropPath(), BranchDropout, "drop_prob"),
        (StochasticDepth(0.1, "row"), BranchDropout, "p"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_class_has_its_form_and_comes_back_with_its_tuned_rate(
    module: nn.Module, form: type[UnitDropout], number: str
) -> None:
    net = converted(module)
    assert type(net.network.get_submodule("drop")) is form
    assert net.conversion.bound == {"drop": "rate"}
    with net.using(Sample({"rate": torch.tensor([0.25])})):
        assert getattr(net.network.get_submodule("drop"), number) == 0.25
    plain = net.to_plain().get_submodule("drop")
    assert type(plain) is type(module)
    assert getattr(plain, number) == pytest.approx(0.5)


@pytest.mark.parametrize("module", [Other(), type("DropPath", (nn.Identity,), {})()])
def test_a_class_with_a_law_of_its_own_is_not_taken_for_another(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="'drop' matches no dropout module"):
        converted(module)


@pytest.mark.parametrize("module", [Mine(), MinesToo()])
def test_a_subclass_drops_exactly_as_its_base_does(module: nn.Module) -> None:
    inputs = torch.rand(3, 5) + 0.5
    rates = [0.0, 0.4, 0.9]
    assert torch.equal(outputs_of(module, inputs, rates), outputs_of(nn.Dropout(), inputs, rates))


# SELU -------------------------------------------------------------------------------------------------------------

ALPHAS: list[tuple[type[nn.Module], Callable[[Tensor, float, bool], Tensor]]] = [
    (nn.AlphaDropout, F.alpha_dropout),
    (nn.FeatureAlphaDropout, F.feature_alpha_dropout),
]


@pytest.mark.parametrize(("kind", "function"), ALPHAS)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_two_values_of_a_unit_are_those_of_torch(kind: Any, function: Any, rate: float) -> None:
    for value in (1.0, -0.7):
        inputs = torch.full((2, 300), value, dtype=torch.float64)
        expected = function(inputs, rate, True).unique()
        found = outputs_of(kind(), inputs, [rate, rate]).unique()
        assert len(expected) == 2
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # the rate itself is float32


@pytest.mark.parametrize(("kind", "function"), ALPHAS)
def test_each_example_is_dropped_as_often_as_its_rate_says(kind: Any, function: Any) -> None:
    rates = [0.0, 0.05, 0.5, 0.9, 1.0]
    outputs = outputs_of(kind(), torch.ones(len(rates), MANY), rates)
    for row, rate in zip(outputs, [*rates[:-1], MAX_RATE], strict=True):
        dropped = float((row < 0.2).double().mean())  # kept units are above it, at each rate here
        assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / MANY) ** 0.5)


@pytest.mark.parametrize(("kind", "function"), ALPHAS)
def test_mean_and_variance_of_normal_inputs_are_kept(kind: Any, function: Any) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(4, MANY, dtype=torch.float64)
    outputs = outputs_of(kind(), inputs, [0.0, 0.1, 0.5, 0.9])
    assert torch.equal(outputs[0], inputs[0])
    assert outputs.mean(1).tolist() == pytest.approx([0] * 4, abs=0.05)
    assert outputs.var(1).tolist() == pytest.approx([1] * 4, abs=0.05)


def test_features_are_dropped_whole() -> None:
    outputs = outputs_of(nn.FeatureAlphaDropout(), torch.ones(3, 400, 2, 5), [0.2, 0.5, 0.9]).flatten(2)
    assert torch.equal(outputs, outputs[..., :1].expand_as(outputs))
    assert all(len(row.unique()) == 2 for row in outputs)
    with pytest.raises(ValueError, match=r"shape \(3,\); accepted is \(batch, channels, \.\.\.\)"):
        outputs_of(nn.FeatureAlphaDropout(), torch.ones(3), [0.2])


@pytest.mark.parametrize(("kind", "function"), ALPHAS)
def test_value_and_tangent_lose_the_same(kind: Any, function: Any) -> None:
    """The tangent is that of a function affine in its input, with the same draws."""
    inputs, change = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    rates = [0.0, 0.3, 0.9]
    net = converted(kind())
    expected, at_one, at_zero = (
        outputs_of(kind(), each, rates) for each in (inputs, torch.ones_like(inputs), torch.zeros_like(inputs))
    )
    torch.manual_seed(0)
    with forward_ad.dual_level(), net.using(Sample({"rate": torch.tensor(rates)}, linearise=True)):
        dual = net.network.get_submodule("drop")(forward_ad.make_dual(inputs, change))  # type: ignore[no-untyped-call]
        outputs = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    assert torch.equal(outputs.primal, expected)
    torch.testing.assert_close(outputs.tangent, change * (at_one - at_zero))


# Channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "axes"),
    [
        (nn.Dropout1d, (3, 40, 7), 2),
        (nn.Dropout1d, (40, 7), 1),
        (nn.Dropout2d, (3, 40, 5, 6), 2),
        (nn.Dropout3d, (3, 40, 2, 3, 2), 2),
        (nn.Dropout3d, (40, 2, 3, 2), 1),
    ],
)
def test_channels_are_those_that_torch_takes_for_them(kind: Any, shape: tuple[int, ...], axes: int) -> None:
    """Of an input that torch takes for one without a batch, too."""
    plain = kind(0.5)(torch.ones(shape)).flatten(axes)
    found = outputs_of(kind(), torch.ones(shape), [0.5]).flatten(axes)
    for outputs in (plain, found):
        assert torch.equal(outputs, outputs[..., :1].expand_as(outputs))
        assert sorted(outputs.unique().tolist()) == [0, 2]  # type: ignore[no-untyped-call]
        assert 0.2 < float((outputs[..., 0] == 0).double().mean()) < 0.8


# Branches ---------------------------------------------------------------------------------------------------------

BRANCHES: dict[str, tuple[nn.Module, bool]] = {
    "timm": (DropPath(), True),
    "timm, not rescaled": (DropPath(scale_by_keep=False), False),
    "transformers": (SwinDropPath(0.2), True),
    "torchvision": (StochasticDepth(0.1, "row"), True),
}


@pytest.mark.parametrize(("module", "rescales"), BRANCHES.values(), ids=BRANCHES)
def test_each_branch_is_dropped_at_its_own_rate(module: nn.Module, rescales: bool) -> None:
    rates = torch.tensor([0.0, 0.3, 0.9]).repeat_interleave(4000)
    outputs = outputs_of(module, torch.ones(len(rates), 2, 3), rates.tolist()).flatten(1)
    assert torch.equal(outputs, outputs[:, :1].expand_as(outputs))
    for rows, rate in zip(outputs[:, 0].view(3, -1), (0.0, 0.3, 0.9), strict=True):
        values = rows.unique().tolist()  # type: ignore[no-untyped-call]
        assert values[-1] == pytest.approx(1 / (1 - rate) if rescales else 1)
        assert len(values) == (1 if rate == 0 else 2)
        assert float((rows == 0).double().mean()) == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 4000) ** 0.5)


@pytest.mark.slow
def test_the_batch_is_dropped_together_where_torchvision_says_so() -> None:
    """Of examples with equal rates all are dropped or none, and each as often as its rate says."""
    kept = torch.stack(
        [outputs_of(StochasticDepth(0.1, "batch"), torch.ones(3, 2), [0.5, 0.5, 0.2], seed=i) for i in range(400)]
    )
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert (kept[..., 0] == 0).double().mean(0).tolist() == pytest.approx([0.5, 0.5, 0.2], abs=0.12)


def test_drop_path_of_timm() -> None:
    drop = pytest.importorskip("timm.layers.drop", reason="timm is not installed")
    branch = outputs_of(drop.DropPath(0.1), torch.ones(200, 2), [0.5] * 200)
    assert sorted(branch.unique().tolist()) == [0, 2]  # type: ignore[no-untyped-call]


def test_stochastic_depth_of_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    branch = outputs_of(ops.StochasticDepth(0.1, "row"), torch.ones(200, 2), [0.5] * 200)
    assert sorted(branch.unique().tolist()) == [0, 2]  # type: ignore[no-untyped-call]


def test_drop_path_of_transformers() -> None:
    swin = pytest.importorskip("transformers.models.swin.modeling_swin", reason="transformers is not installed")
    kinds = [value for name, value in vars(swin).items() if name.endswith("DropPath")]
    assert kinds
    branch = outputs_of(kinds[0](0.1), torch.ones(200, 2), [0.5] * 200)
    assert sorted(branch.unique().tolist()) == [0, 2]  # type: ignore[no-untyped-call]
