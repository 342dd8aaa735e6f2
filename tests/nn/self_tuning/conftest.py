"""Networks written as users write them. One is one entry of `ZOO`; it then gets every test of test_contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tune_stn.nn import ResponseSize, SelfTuningModel
from tune_stn.nn import self_tuning as convert
from tune_stn.space import SearchSpace, Uniform

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.3, "other": 0.1}
NO_RESPONSE = "no response layer for "
NORM = "norms=False: its affine part stays plain"


class ControlFlow(nn.Module):
    """Loops, branches, a skip, a module used twice, attributes of layers, containers of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5)) for _ in range(2)])
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 3)})
        self.shared = nn.Linear(8, 8)
        self.twin = self.shared
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor, head: str | None = None) -> Tensor:
        hidden = self.stem(inputs.view(-1, self.stem.in_features))
        for index, block in enumerate(self.blocks):
            hidden = block(hidden) + hidden if index % 2 else block(hidden)
        hidden = torch.tanh(self.twin(torch.tanh(self.shared(hidden))))
        chosen = head or ("a" if float(inputs.detach().sum()) > 0 else "b")
        outputs: Tensor = self.scale * self.heads[chosen](self.drop(hidden))
        return outputs


class Tied(nn.Module):
    """Embedding and decoder share their weight, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 11)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.decoder(torch.tanh(self.hidden(self.embedding(tokens))))
        return outputs


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(False)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(images).mean((2, 3)))
        return outputs


class Everything(nn.Module):
    """A hook, a parametrised layer, a recurrent one, a free parameter in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.hooked = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.offsets = nn.ParameterList([torch.zeros(4)])
        self.out = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.gru(self.normed(self.hooked(inputs)))
        outputs: Tensor = self.out(hidden[:, -1] + self.offsets[0])
        return outputs


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.encoder(inputs).mean(1))
        return outputs


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.5)),
        nn.Sequential(nn.MaxPool2d(2), nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())),
        nn.Linear(16, 3),
    )


@dataclass(frozen=True)
class Network:
    """A network, what it takes, and what the conversion should make of it."""

    make: Callable[[], nn.Module]
    draw: Callable[[], Tensor]
    responding: set[str]
    plain: Mapping[str, str] = field(default_factory=dict)
    dropout: Mapping[str, str] = field(default_factory=dict)
    bound: Mapping[str, str] = field(default_factory=dict)

    def original(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def inputs(self) -> Tensor:
        torch.manual_seed(1)
        return self.draw()

    def converted(
        self, size: ResponseSize | None = "gate", *, centred: bool = False, stirred: bool = False
    ) -> SelfTuningModel:
        """By `self_tuning`; `stirred` has a response that is not zero any more."""
        model = convert(
            self.original(), SPACE, start=START, dropout=self.dropout, response=size, centred=centred, seed=3
        )
        torch.manual_seed(2)
        for name, parameter in model.network.named_parameters():
            if stirred and name.endswith("gate"):
                nn.init.normal_(parameter, std=0.5)
        return model


ZOO: dict[str, Network] = {
    "single linear": Network(lambda: nn.Linear(4, 2), lambda: torch.randn(5, 4), {""}),
    "single convolution": Network(lambda: nn.Conv1d(2, 3, 2), lambda: torch.randn(5, 2, 4), {""}),
    "nested sequential": Network(
        convnet,
        lambda: torch.randn(5, 1, 8, 8),
        {"0.0", "1.1.0", "2"},
        {"0.1": NORM},
        {"0.3": "rate"},
        {"0.3": "rate"},
    ),
    "control flow": Network(
        ControlFlow,
        lambda: torch.randn(5, 2, 3),
        {"stem", "blocks.0.0", "blocks.1.0", "heads.a", "heads.b", "shared"},
        {"": NO_RESPONSE + "ControlFlow"},
        {"drop": "other", "blocks.*": "rate"},
        {"blocks.0.2": "rate", "blocks.1.2": "rate", "drop": "other"},
    ),
    "tied weights": Network(
        Tied,
        lambda: torch.randint(11, (5, 4)),
        {"embedding", "hidden"},
        {"decoder": "weight shared with embedding"},
    ),
    "frozen backbone": Network(
        Frozen,
        lambda: torch.randn(5, 1, 5, 5),
        {"head"},
        {"backbone.0": "frozen", "backbone.1": NORM},
    ),
    "hooked, parametrised, recurrent": Network(
        Everything,
        lambda: torch.randn(5, 3, 4),
        {"out"},
        {
            "hooked": "has hooks, which a replacement would lose: register them after the conversion",
            "normed": NO_RESPONSE + "ParametrizedLinear",
            "normed.parametrizations.weight": NO_RESPONSE + "ParametrizationList",
            "gru": NO_RESPONSE + "GRU",
            "offsets": NO_RESPONSE + "ParameterList",
        },
    ),
    "transformer": Network(
        Transformer,
        lambda: torch.randn(5, 4, 8),
        {"head", *(f"encoder.layers.{i}.{name}" for i in range(2) for name in ("self_attn", "linear1", "linear2"))},
        {f"encoder.layers.{i}.{name}": NORM for i in range(2) for name in ("norm1", "norm2")},
        {"encoder.layers.*.dropout2": "rate"},
        {"encoder.layers.0.dropout2": "rate", "encoder.layers.1.dropout2": "rate"},
    ),
}


@pytest.fixture(params=ZOO)
def network(request: pytest.FixtureRequest) -> Network:
    return ZOO[request.param]


@pytest.fixture(params=["full", 2, "gate"])
def size(request: pytest.FixtureRequest) -> ResponseSize:
    return request.param


@pytest.fixture
def control_flow() -> Network:
    return ZOO["control flow"]
