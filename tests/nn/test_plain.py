"""The way back to an ordinary network: of the user's classes, with the outputs of the tuned one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tune_stn.nn import LockedDropout, ResponseSize, SelfTuningModel, StochasticDepth, self_tuning
from tune_stn.space import SearchSpace, Tunable, Uniform
from tune_stn.training.self_tuner import SelfTuner

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "shared": Uniform(0, 0.9)}, per_batch=["shared"])
START = {"rate": 0.3, "shared": 0.1}


class Recurrent(nn.Module):
    """An LSTM between an embedding and a decoder that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.dropout = LockedDropout(batch_first=True)
        self.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.2, bidirectional=False, batch_first=True)
        self.decoder = nn.Linear(6, 7)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.decoder(self.lstm(self.dropout(self.embedding(tokens)))[0])
        return outputs


class Attention(nn.Module):
    """Self-attention, attention with other widths of keys and values, and one of torch's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(6, 2, dropout=0.2, batch_first=True)
        self.other = nn.MultiheadAttention(6, 2, kdim=4, vdim=3, bias=False, batch_first=True)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.branch = StochasticDepth()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch(self.own(x, x, x)[0])
        outputs: Tensor = self.block(x + self.other(x, x[..., :4], x[..., :3])[0])
        return outputs


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Dropout2d(),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.GroupNorm(2, 6),
        nn.Flatten(),
        nn.LayerNorm(6 * 25),
        nn.Dropout(),
        nn.Linear(6 * 25, 3),
    )


# A network, its inputs, and what reads a rate.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, str], dict[str, str]]] = {
    "images": (images, lambda: torch.randn(4, 2, 5, 5), {"2": "rate", "7": "shared"}, {"8": "shared"}),
    "recurrent": (
        Recurrent,
        lambda: torch.randint(7, (4, 5)),
        {"dropout": "rate", "lstm": "shared"},
        {"lstm": "shared", "embedding": "shared"},
    ),
    "attention": (
        Attention,
        lambda: torch.randn(4, 5, 6),
        {"own": "rate", "branch": "rate", "block.dropout": "rate"},
        {},
    ),
    "a single layer": (lambda: nn.Linear(3, 2), lambda: torch.randn(4, 3), {}, {}),
}


def tuned(name: str, size: ResponseSize | None, **more: Any) -> tuple[SelfTuningModel, nn.Module, Tensor]:
    """A converted network as it is after training, the one it was made of, and inputs."""
    torch.manual_seed(0)
    make, inputs, dropout, weight_dropout = NETWORKS[name]
    base = make()
    net = self_tuning(
        base, SPACE, start=START, dropout=dropout, weight_dropout=weight_dropout, response=size, norms=True, **more
    )
    with torch.no_grad():
        for parameter in net.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if isinstance(net.hyper, Tunable):
            net.hyper.raw.add_(torch.tensor([0.7, -0.4]))
        net.train()(inputs())  # running statistics
    return net, base, inputs()


@pytest.mark.parametrize("size", ["full", 2, "gate", None])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_tuned_network_and_names_those_of_the_users(
    name: str, size: ResponseSize | None
) -> None:
    net, base, inputs = tuned(name, size)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plain = net.to_plain()
    expected = net.eval()(inputs)
    assert type(plain) is type(base)
    assert [(path, type(m)) for path, m in plain.named_modules()] == [
        (path, type(m)) for path, m in base.named_modules()
    ]
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in base.state_dict().items()}
    assert plain.training
    torch.testing.assert_close(plain.eval()(inputs), expected, rtol=1e-5, atol=1e-5)
    make, *_ = NETWORKS[name]
    if name != "recurrent" or size is None:  # a response of the embedding takes the decoder's weight away from it
        again = make().eval()
        again.load_state_dict(plain.state_dict())
        assert torch.equal(again(inputs), plain(inputs))
    # It is a copy, and one that trains.
    plain.train()(inputs).square().sum().backward()
    assert all(p.grad is not None for p in plain.parameters() if p.requires_grad)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(net(inputs), expected)


def test_dropouts_have_their_tuned_rates_and_others_their_own() -> None:
    values = tuned("images", "gate")[0].hyperparameters()
    plain = tuned("images", "gate")[0].to_plain()
    assert (plain[2].p, plain[7].p) == (pytest.approx(values["rate"]), pytest.approx(values["shared"]))  # type: ignore[index]
    assert values != pytest.approx(START)
    plain = tuned("recurrent", "gate")[0].to_plain()
    assert (plain.dropout.p, plain.lstm.dropout) == (pytest.approx(values["rate"]), pytest.approx(values["shared"]))
    assert plain.dropout.batch_first
    plain = tuned("attention", None)[0].to_plain()
    assert plain.own.dropout == plain.branch.p == plain.block.dropout.p == pytest.approx(values["rate"])
    assert plain.block.dropout1.p == 0.1


@pytest.mark.parametrize("how", [{"centred": True}, {"tuned": False}])
def test_without_a_response_at_the_mean_the_base_parameters_are_kept(how: dict[str, Any]) -> None:
    net, _, inputs = tuned("images", "full", **how)
    plain = net.to_plain()
    own = dict(net.network.named_parameters())
    assert all(torch.equal(parameter, own[name]) for name, parameter in plain.named_parameters())
    torch.testing.assert_close(plain.eval()(inputs), net.eval()(inputs))


def test_ties_and_frozen_parts_stay_as_they_are() -> None:
    net = tuned("recurrent", None)[0]
    plain = net.to_plain()
    assert plain.decoder.weight is plain.embedding.weight
    base = images().requires_grad_(False)
    base[8].requires_grad_(True)
    plain = self_tuning(base, SPACE, start=START, norms=True).to_plain()
    assert {name for name, parameter in plain.named_parameters() if parameter.requires_grad} == {"8.weight", "8.bias"}


def test_a_network_in_double_precision_or_elsewhere_comes_back_so() -> None:
    net, _, inputs = tuned("images", 2)
    plain = net.double().to_plain()
    assert {tensor.dtype for tensor in plain.state_dict().values()} == {torch.float64, torch.int64}
    torch.testing.assert_close(plain.eval()(inputs.double()), net.eval()(inputs.double()))


def test_a_plain_network_that_is_given_a_self_tuning_state_is_told_of_to_plain() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2))

    net, other = (self_tuning(make(), SPACE, start=START, dropout={"1": "rate"}) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*a plain one loads that of net\.to_plain\(\)"):
        make().load_state_dict(net.state_dict())
    other.load_state_dict(net.state_dict())
    whole, again = nn.ModuleList([net]), nn.ModuleList([other])
    again.load_state_dict(whole.state_dict())
    make().load_state_dict(net.to_plain().state_dict())


class Saved(nn.Linear):
    def save_pretrained(self, folder: str) -> str:
        return folder


def test_a_file_that_no_plain_model_reads_is_not_written() -> None:
    model = nn.Sequential(Saved(4, 3), nn.Linear(3, 2))
    vars(model)["save_pretrained"] = model[0].save_pretrained
    with pytest.raises(AttributeError, match=r"no plain model reads: net\.to_plain\(\)\.save_pretrained\("):
        self_tuning(model, SPACE, start=START).save_pretrained("x")
    assert self_tuning(model, SPACE, start=START, response=None).save_pretrained("x") == "x"


NORMED = {
    "hook, weight": nn.utils.weight_norm,
    "hook, spectral": nn.utils.spectral_norm,
    "parametrization, weight": parametrizations.weight_norm,
    "parametrization, spectral": parametrizations.spectral_norm,
}
each_normed = pytest.mark.parametrize("normed", NORMED.values(), ids=NORMED.keys())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@each_normed
def test_weights_that_are_computed_at_each_call_stay_so(normed: Any) -> None:
    """With a graph from an earlier call or without, and back again; torch itself does not copy such a network."""
    torch.manual_seed(0)
    layers = normed(nn.Linear(4, 8)), nn.Unflatten(1, (8, 1)), nn.Dropout(), normed(nn.Conv1d(8, 8, 1)), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    names = list(model.state_dict())
    model(x)
    net = self_tuning(model, SPACE, start=START, dropout={"2": "rate"}, inputs=x)
    assert list(net.conversion.responding) == ["5"]
    net.eval()
    model.eval()
    with net.using(net.perturbed_sample(6)):
        torch.testing.assert_close(net(x), model(x))
    net.train()
    tuner = SelfTuner(net, torch.optim.SGD(net.parameters(), 0.1), algorithm="stn")
    for _ in range(2):
        tuner.train_step(lambda: F.cross_entropy(net(x), y))
    plain = net.eval().to_plain()
    assert type(plain) is nn.Sequential
    assert list(plain.state_dict()) == names
    torch.testing.assert_close(plain(x), net(x))
    assert not torch.allclose(plain(x), model(x))
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(plain(x), model(x))
