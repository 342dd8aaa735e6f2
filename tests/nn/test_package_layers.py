"""Layers that packages have of their own: the linear layer of GPT-2 and the RMS norms, as transformers has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import ResponseSize, ResponseTransposedLinear, SelfTuningModel, self_tuning
from tune_stn.nn.norm import ResponseRMSNormOfPackages
from tune_stn.nn.registry import response_form
from tune_stn.space import SearchSpace, Uniform
from tune_stn.testing import ResponseLayerContract

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)}, per_batch=["other"])
START = {"rate": 0.3, "other": 0.1}


class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class LlamaRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.promote_types(dtype, torch.float32))
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)


class T5LayerNorm(LlamaRMSNorm):
    """The same under another name."""


class GemmaRMSNorm(nn.Module):
    """Its weight is counted from one."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class HalfRMSNorm(LlamaRMSNorm):
    """Looks like one and is none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class GatedRMSNorm(LlamaRMSNorm):
    """Wants another input."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * gate)


class TestTransposedLinear(ResponseLayerContract):
    converted = ResponseTransposedLinear

    def base(self) -> nn.Module:
        return Conv1D(4, 3)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 5, 3)


class TestRMSNormOfPackages(ResponseLayerContract):
    converted = ResponseRMSNormOfPackages
    sizes = ("full", "gate")

    @pytest.fixture(autouse=True, params=[LlamaRMSNorm, GemmaRMSNorm])
    def kind(self, request: pytest.FixtureRequest) -> None:
        self.made = request.param

    def base(self) -> nn.Module:
        base: nn.Module = self.made(3, eps=0.1)
        base.weight.data.add_(torch.rand(3))  # type: ignore[operator, union-attr]
        return base

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 5, 3)

    def test_squared_norm_is_that_of_the_effective_weights(self, size: ResponseSize) -> None:
        """Which is zero, for weight decay spares norms."""
        case = self.case(size)
        squared_norm: Any = case.layer.squared_norm
        assert torch.equal(squared_norm(case.rows), torch.zeros(len(case.rows), dtype=torch.float64))


@pytest.mark.parametrize(
    ("module", "form"),
    [
        (Conv1D(4, 3), ResponseTransposedLinear),
        (Conv1D(3, 3), ResponseTransposedLinear),
        (LlamaRMSNorm(3), ResponseRMSNormOfPackages),
        (T5LayerNorm(3), ResponseRMSNormOfPackages),
        (GemmaRMSNorm(3), ResponseRMSNormOfPackages),
        (LlamaRMSNorm(8).bfloat16(), ResponseRMSNormOfPackages),
        (HalfRMSNorm(3), None),
        (GatedRMSNorm(3), None),
        (type("Conv1D", (nn.Conv1d,), {})(2, 3, 1), None),
        (type("MyRMSNorm", (nn.LayerNorm,), {})(3), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_are_known_by_name_attributes_and_what_they_compute(module: nn.Module, form: Any) -> None:
    assert response_form(module) is form


class Block(nn.Module):
    """A block of a language model."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm, self.fc, self.drop, self.proj = norm(4), Conv1D(6, 4), nn.Dropout(0.0), Conv1D(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:-1], self.fc.nx)
        outputs: Tensor = x + self.proj(self.drop(torch.tanh(self.fc(self.norm(x)))))
        return outputs


def converted(norm: Any, size: Any, **more: Any) -> SelfTuningModel:
    torch.manual_seed(0)
    net = self_tuning(Block(norm), SPACE, start=START, dropout={"drop": "rate"}, response=size, norms=True, **more)
    for parameter in net.response_parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


each_norm = pytest.mark.parametrize("norm", [LlamaRMSNorm, GemmaRMSNorm, nn.RMSNorm])
each_size = pytest.mark.parametrize("size", ["full", 2, "gate"])


@each_norm
@each_size
def test_at_zero_response_a_block_is_the_plain_one(norm: Any, size: Any) -> None:
    net = converted(norm, size).eval()
    assert set(net.conversion.responding) == {"norm", "fc", "proj"}
    torch.manual_seed(0)
    plain, inputs = Block(norm).eval(), torch.randn(3, 5, 4)
    with net.using(net.hyper.constant_sample()):
        torch.testing.assert_close(net(inputs), plain(inputs))


@each_norm
@each_size
def test_the_plain_block_has_the_response_in_its_weights(norm: Any, size: Any) -> None:
    net = converted(norm, size).eval()
    plain, inputs = net.to_plain(), torch.randn(3, 5, 4)
    assert [type(plain.get_submodule(path)) for path in ("norm", "fc", "proj")] == [norm, Conv1D, Conv1D]
    assert plain.state_dict().keys() == Block(norm).state_dict().keys()
    torch.testing.assert_close(plain(inputs), net(inputs))
    untouched = Block(norm)
    untouched.load_state_dict({k: net.network.state_dict()[k] for k in untouched.state_dict()})
    assert not torch.allclose(untouched(inputs), net(inputs), rtol=1e-3)


def test_weights_of_a_transposed_linear_are_dropped() -> None:
    net = converted(LlamaRMSNorm, "gate", weight_dropout={"fc": "other"}).train()
    inputs = torch.randn(3, 4)
    with net.using(net.mean_sample()):
        assert not torch.equal(net(inputs), net(inputs))


def test_rms_norms_stay_plain_unless_asked_for() -> None:
    net = self_tuning(Block(LlamaRMSNorm), SPACE, start=START, dropout={"drop": "rate"})
    assert net.conversion.plain == {"norm": "norms=False: its affine part stays plain"}


def test_layers_of_transformers() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils", reason="transformers is not installed")
    assert response_form(utils.Conv1D(4, 3)) is ResponseTransposedLinear
    for name in (
        "llama.modeling_llama.LlamaRMSNorm",
        "t5.modeling_t5.T5LayerNorm",
        "gemma.modeling_gemma.GemmaRMSNorm",
    ):
        path, _, kind = name.rpartition(".")
        module = pytest.importorskip(f"transformers.models.{path}")
        assert response_form(getattr(module, kind)(5)) is ResponseRMSNormOfPackages
