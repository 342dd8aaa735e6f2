"""Norms: the contract of all response layers, and the statistics, which are those of the plain layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tune_stn.nn import ResponseBatchNorm2d, ResponseLayerNorm, ResponseNorm, Slot
from tune_stn.nn import self_tuning as convert
from tune_stn.nn.response import ResponseSize
from tune_stn.nn.self_tuning import RESPONSES
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample
from tune_stn.testing import ResponseLayerContract
from tune_stn.training.rules.delta_stn import without_running_statistics

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.3, "other": 0.1}


@dataclass(frozen=True)
class Family:
    make: Callable[..., nn.Module]
    shape: tuple[int, ...]


FAMILIES = {
    "layer": Family(lambda: nn.LayerNorm(3), (3,)),
    "layer on sequences": Family(lambda: nn.LayerNorm(3, eps=0.1), (5, 3)),
    "layer of two axes": Family(lambda: nn.LayerNorm((2, 3)), (4, 2, 3)),
    "root mean square": Family(lambda: nn.RMSNorm(3, eps=0.1), (5, 3)),
    "root mean square of two axes": Family(lambda: nn.RMSNorm((2, 3)), (4, 2, 3)),
    "layer without bias": Family(lambda: nn.LayerNorm(3, bias=False), (5, 3)),
    "group": Family(lambda: nn.GroupNorm(2, 4), (4, 3)),
    "batch 1d": Family(lambda: nn.BatchNorm1d(3), (3,)),
    "batch 1d on sequences": Family(lambda: nn.BatchNorm1d(3, momentum=0.4), (3, 5)),
    "batch 2d": Family(lambda: nn.BatchNorm2d(3, eps=0.1), (3, 2, 4)),
    "batch 2d averaging": Family(lambda: nn.BatchNorm2d(3, momentum=None), (3, 2, 4)),
    "batch 3d": Family(lambda: nn.BatchNorm3d(2), (2, 2, 1, 3)),
}


class TestNorms(ResponseLayerContract):
    sizes = ("full", "gate")

    @pytest.fixture(autouse=True, params=FAMILIES)
    def family(self, request: pytest.FixtureRequest) -> None:
        self.made = FAMILIES[request.param]
        self.converted = RESPONSES[type(self.made.make())]  # type: ignore[misc]

    def base(self) -> nn.Module:
        """Used, not fresh: gamma is not one, beta not zero, statistics are not those of no data."""
        base = self.made.make()
        for tensor in (*base.parameters(), *base.buffers()):
            if tensor.is_floating_point():
                tensor.data.add_(torch.rand_like(tensor))
        return base

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, *self.made.shape) * 2 + 1

    def test_squared_norm_is_that_of_the_effective_weights(self, size: ResponseSize) -> None:
        """Which is zero, for weight decay spares norms."""
        case = self.case(size)
        layer = case.layer
        assert isinstance(layer, ResponseNorm)
        assert torch.equal(layer.squared_norm(case.rows), torch.zeros(len(case.rows), dtype=torch.float64))
        assert torch.equal(layer.squared_norm(None), torch.zeros(1, dtype=torch.float64))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_norm(size: ResponseSize | None, **settings: object) -> ResponseBatchNorm2d:
    layer = ResponseBatchNorm2d(nn.BatchNorm2d(3, **settings), 2, size, Slot(), seeded(1))  # type: ignore[arg-type]
    for parameter in layer.response_parameters():
        nn.init.normal_(parameter)
    return layer


def test_the_equation_by_hand() -> None:
    torch.manual_seed(0)
    layer = ResponseLayerNorm(nn.LayerNorm(3), 2, "full", Slot(), seeded(1))
    nn.init.normal_(layer.gate)
    x, h = torch.randn(4, 5, 3), torch.randn(4, 2)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt()
    gates = h @ layer.gate.T
    scale = layer.weight + gates[:, :3] * layer.response_weight
    shift = layer.bias + gates[:, 3:] * layer.response_bias
    with layer.slot.using(Sample({}, h)):
        torch.testing.assert_close(layer(x), normal * scale[:, None] + shift[:, None])


@pytest.mark.parametrize("linearise", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_each_batch_is_counted_once_and_its_statistics_are_the_plain_ones(
    momentum: float | None, linearise: bool
) -> None:
    """Whatever the hyperparameters of its examples."""
    torch.manual_seed(0)
    layer, plain = batch_norm("gate", momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    for rows in (None, 1, 4, 4):
        inputs = torch.randn(4, 3, 2, 2) * 3 + 1
        response_input = None if rows is None else torch.randn(rows, 2)
        with layer.slot.using(Sample({}, response_input, linearise)), ExitStack() as stack:
            if linearise:
                stack.enter_context(forward_ad.dual_level())
            layer(inputs)
        plain(inputs)
    state = layer.state_dict()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(state[name], buffer, msg=name)
    assert int(state["num_batches_tracked"]) == 4


def test_a_response_step_counts_no_batch() -> None:
    """It sees the same batch as the base step before it."""
    layer = batch_norm("gate")
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    inputs = torch.randn(4, 3, 2, 2)
    sample = Sample({}, torch.randn(4, 2), linearise=True)
    with without_running_statistics(layer), layer.slot.using(sample), forward_ad.dual_level():
        value, _ = forward_ad.unpack_dual(layer(inputs))  # type: ignore[no-untyped-call]
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())
    torch.testing.assert_close(value, nn.BatchNorm2d(3)(inputs))


def test_an_untracked_batch_norm_goes_by_the_batch_in_eval_mode_too() -> None:
    layer = batch_norm(None, track_running_stats=False).eval()
    inputs = torch.randn(4, 3, 2, 2)
    plain = nn.BatchNorm2d(3, track_running_stats=False).eval()
    with layer.slot.using(Sample({})):
        assert torch.equal(layer(inputs), plain(inputs))
    assert layer.state_dict().keys() == plain.state_dict().keys()


def test_it_is_still_a_batch_norm_of_torch() -> None:
    layer = batch_norm("gate")
    assert isinstance(layer, nn.BatchNorm2d)
    with pytest.raises(ValueError, match="expected 4D input"), layer.slot.using(Sample({})):
        layer(torch.randn(4, 3))
    with layer.slot.using(Sample({})):
        layer(torch.randn(4, 3, 2, 2))
    layer.reset_running_stats()
    assert int(layer.state_dict()["num_batches_tracked"]) == 0


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.group = nn.GroupNorm(2, 4)
        self.bare = nn.LayerNorm(3, elementwise_affine=False)
        self.layer = nn.LayerNorm(3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layer(self.bare(torch.tanh(self.group(torch.relu(self.batch(self.conv(images)))))))
        return outputs


def test_their_affine_parts_respond_only_when_asked() -> None:
    plain = convert(Norms(), SPACE, start=START).conversion
    assert plain.responding == {"conv": "gate"}
    assert plain.plain == dict.fromkeys(("batch", "group", "layer"), "norms=False: its affine part stays plain")
    asked = convert(Norms(), SPACE, start=START, norms=True, response={"group": None, "*": 2}).conversion
    assert asked.responding == {"conv": "rank 2", "batch": "full", "layer": "full"}  # a rank has no meaning here
    assert asked.plain == {"group": "no response asked for"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", ["full", "gate"])
def test_tangents_of_layers_before_pass_through_the_statistics(size: ResponseSize, training: bool) -> None:
    """Value and gradient of a response step of Delta-STN, against double backward."""
    torch.manual_seed(0)
    model = convert(Norms(), SPACE, start=START, response=size, norms=True).double().train(training)
    for parameter in model.response_parameters():
        nn.init.normal_(parameter, std=0.5)
    for parameter in model.base_parameters():
        parameter.requires_grad_(False)
    inputs, h = torch.randn(5, 1, 4, 5, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)

    def f(response_input: Tensor, *, linearise: bool = False) -> Tensor:
        with model.using(Sample({}, response_input, linearise)):
            outputs: Tensor = model(inputs)
        return outputs

    with forward_ad.dual_level():
        ours = forward_ad.unpack_dual(f(h, linearise=True))  # type: ignore[no-untyped-call]
    theirs = torch.autograd.functional.jvp(f, torch.zeros_like(h), h, create_graph=True)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(tuple(ours), theirs)
    losses = [(value + tangent).square().sum() for value, tangent in (ours, theirs)]
    gradients = [torch.autograd.grad(loss, model.response_parameters()) for loss in losses]
    torch.testing.assert_close(*gradients)
