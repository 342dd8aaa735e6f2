"""Conversion of networks written as users write them.

A network is one entry of `ZOO`; it then gets every test of the contract in the first half of this file.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from tune_stn.nn import ChannelDropout, ResponseConv, ResponseLinear, ResponseSize, SelfTuningModel, UnitDropout
from tune_stn.nn import self_tuning as convert
from tune_stn.space import Constants, SearchSpace, Tunable, Uniform
from tune_stn.space.sample import Sample

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.3, "other": 0.1}
NO_RESPONSE = "no response layer for "
OPAQUE = "its parent reads the parameters directly"


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
    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    responding: set[str]
    plain: Mapping[str, str] = field(default_factory=dict)
    dropout: Mapping[str, str] = field(default_factory=dict)
    bound: Mapping[str, str] = field(default_factory=dict)


ZOO: dict[str, Network] = {
    "single linear": Network(lambda: nn.Linear(4, 2), lambda: torch.randn(5, 4), {""}),
    "single convolution": Network(lambda: nn.Conv1d(2, 3, 2), lambda: torch.randn(5, 2, 4), {""}),
    "nested sequential": Network(
        convnet,
        lambda: torch.randn(5, 1, 8, 8),
        {"0.0", "1.1.0", "2"},
        {"0.1": NO_RESPONSE + "BatchNorm2d"},
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
        {"hidden"},
        {"embedding": NO_RESPONSE + "Embedding", "decoder": "weight shared with another module"},
    ),
    "frozen backbone": Network(
        Frozen,
        lambda: torch.randn(5, 1, 5, 5),
        {"head"},
        {"backbone.0": "frozen", "backbone.1": NO_RESPONSE + "BatchNorm2d"},
    ),
    "hooked, parametrised, recurrent": Network(
        Everything,
        lambda: torch.randn(5, 3, 4),
        {"out"},
        {
            "hooked": "has hooks, which a replacement would lose",
            "normed": NO_RESPONSE + "ParametrizedLinear",
            "normed.parametrizations.weight": NO_RESPONSE + "ParametrizationList",
            "gru": NO_RESPONSE + "GRU",
            "offsets": NO_RESPONSE + "ParameterList",
        },
    ),
    "transformer": Network(
        Transformer,
        lambda: torch.randn(5, 4, 8),
        {"head"},
        {
            f"encoder.layers.{i}.{name}": reason
            for i in range(2)
            for name, reason in {
                "self_attn": NO_RESPONSE + "MultiheadAttention",
                "self_attn.out_proj": NO_RESPONSE + "NonDynamicallyQuantizableLinear",
                "linear1": OPAQUE,
                "linear2": OPAQUE,
                "norm1": NO_RESPONSE + "LayerNorm",
                "norm2": NO_RESPONSE + "LayerNorm",
            }.items()
        },
        {"encoder.layers.*.dropout2": "rate"},
        {"encoder.layers.0.dropout2": "rate", "encoder.layers.1.dropout2": "rate"},
    ),
}
each_network = pytest.mark.parametrize("network", ZOO.values(), ids=ZOO.keys())
each_size = pytest.mark.parametrize("size", ["full", 2, "gate"])


def original(network: Network) -> nn.Module:
    torch.manual_seed(0)
    return network.make()


def converted(network: Network, size: ResponseSize | None = "gate", *, centred: bool = False) -> SelfTuningModel:
    return convert(
        original(network), SPACE, start=START, dropout=network.dropout, response=size, centred=centred, seed=3
    )


def inputs_of(network: Network) -> Tensor:
    torch.manual_seed(1)
    return network.inputs()


def randomised(model: SelfTuningModel) -> SelfTuningModel:
    """With a response that is not zero any more."""
    torch.manual_seed(2)
    for layer in model.response_layers():
        nn.init.normal_(layer.gate, std=0.5)
    return model


# The contract -----------------------------------------------------------------------------------------------------


@each_network
@each_size
def test_what_is_converted_is_listed_and_what_is_left_plain_is_listed_with_a_reason(
    network: Network, size: ResponseSize
) -> None:
    model = converted(network, size)
    words = size if isinstance(size, str) else f"rank {size}"
    assert model.conversion.responding == dict.fromkeys(network.responding, words)
    assert model.conversion.plain == network.plain
    assert model.conversion.bound == network.bound
    for path in network.responding:
        assert isinstance(model.network.get_submodule(path), (ResponseLinear, ResponseConv))
    for path, name in network.bound.items():
        module = model.network.get_submodule(path)
        assert isinstance(module, UnitDropout)
        assert module.rate == name
    listed = network.responding | set(network.plain)
    own = {path for path, m in original(network).named_modules() if list(m.parameters(recurse=False))}
    assert listed == own  # nothing with parameters goes unmentioned
    text = str(model.conversion)
    assert all(f"{path or 'the model itself'}: " in text for path in listed)
    assert all(f"{path}: reads {name}" in text for path, name in network.bound.items())


@each_network
@each_size
def test_zero_response_is_the_original(network: Network, size: ResponseSize) -> None:
    """In eval mode at any hyperparameters, for U starts at zero, and exactly so at a zero response input."""
    plain, model = original(network).eval(), converted(network, size).eval()
    inputs = inputs_of(network)
    with torch.no_grad():
        expected = plain(inputs)
        with model.using(model.hyper.constant_sample()):
            assert torch.equal(model(inputs), expected)
        torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)
        with model.using(model.perturbed_sample(len(inputs))):
            torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)


@each_network
def test_original_is_untouched(network: Network) -> None:
    plain = original(network)
    modules, state = dict(plain.named_modules()), copy.deepcopy(plain.state_dict())
    flags = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    model = convert(plain, SPACE, start=START, dropout=network.dropout)
    train(model, inputs_of(network))
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


@each_network
@each_size
def test_training_moves_all_that_is_trainable_and_nothing_else(network: Network, size: ResponseSize) -> None:
    model = converted(network, size)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, inputs_of(network), steps=3)
    for name, parameter in model.named_parameters():
        unused = "heads." in name  # of two heads, a batch takes one
        moved = not torch.equal(parameter.detach(), before[name])
        assert unused or moved == parameter.requires_grad, name
        assert bool(torch.isfinite(parameter).all())


@each_network
@each_size
def test_saved_state_is_plain_tensors_and_loads_into_another(network: Network, size: ResponseSize) -> None:
    model = converted(network, size)
    train(model, inputs_of(network))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(99)
    other = convert(network.make(), SPACE, start={"rate": 0.5, "other": 0.5}, dropout=network.dropout, response=size)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    inputs = inputs_of(network)
    with torch.no_grad():
        assert torch.equal(other.eval()(inputs), model.eval()(inputs))
    assert other.hyper.mean_values() == model.hyper.mean_values()


@each_network
def test_parameters_are_either_base_or_response_each_once(network: Network) -> None:
    model = converted(network, "full")
    base, response = model.base_parameters(), model.response_parameters()
    ids = [id(parameter) for parameter in (*base, *response)]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.network.parameters() if p.requires_grad}
    plain = sum(p.numel() for p in original(network).parameters() if p.requires_grad)
    assert sum(parameter.numel() for parameter in base) == plain


@each_network
@each_size
def test_base_weights_and_global_stream_are_those_of_the_plain_network(network: Network, size: ResponseSize) -> None:
    """Every method starts from the same weights at a seed, and draws the same noise after."""
    plain = original(network)
    state = torch.get_rng_state()
    model = convert(plain, SPACE, start=START, dropout=network.dropout, response=size, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = dict(plain.named_parameters())
    ours = dict(model.network.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@each_network
def test_merged_response_is_that_response_for_each_example(network: Network) -> None:
    model = randomised(converted(network, 2)).eval()
    inputs = inputs_of(network)
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


@each_network
def test_example_depends_on_its_own_hyperparameters_only(network: Network) -> None:
    model = randomised(converted(network)).eval()
    inputs = inputs_of(network)
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


@each_network
@pytest.mark.parametrize("training", [True, False])
def test_mode_is_kept(network: Network, training: bool) -> None:
    plain = original(network).train(training)
    model = convert(plain, SPACE, start=START, dropout=network.dropout)
    assert model.training == training
    assert {module.training for module in model.network.modules()} == {training}


@each_network
def test_copies_have_a_slot_of_their_own(network: Network) -> None:
    model = converted(network)
    twin = copy.deepcopy(model)
    with model.using(model.mean_sample()):
        assert not twin.slot.is_set
        assert torch.equal(twin.eval()(inputs_of(network)), model.eval()(inputs_of(network)))
    assert all(layer.slot is twin.slot for layer in twin.response_layers())


# Linearised networks ----------------------------------------------------------------------------------------------


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
@each_size
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_tangent_of_a_network_is_its_jacobian_product(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dropout: str, size: ResponseSize, training: bool
) -> None:
    """J_h f(x; 0) h against double backward and against finite differences, dropout with a mask that stays."""
    torch.manual_seed(0)
    model = convert(make(), SPACE, start=START, dropout={dropout: "rate"}, response=size).double()
    model.train(training)
    randomised(model)
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


@each_size
def test_gradients_through_a_tangent_are_those_of_double_backward(size: ResponseSize) -> None:
    """What a response step differentiates: a loss of primal + tangent, by the response parameters."""
    torch.manual_seed(0)
    model = randomised(convert(mlp(), SPACE, start=START, response=size).double().eval())
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


# Samples ----------------------------------------------------------------------------------------------------------


def test_the_response_sees_raw_coordinates_or_offsets() -> None:
    network = ZOO["control flow"]
    plain, centred = converted(network), converted(network, centred=True)
    assert isinstance(plain.hyper, Tunable)
    raw = plain.hyper.raw.detach()
    mean = plain.mean_sample()
    assert mean.response_input is not None
    torch.testing.assert_close(mean.response_input, raw[None])
    assert not mean.response_input.requires_grad
    assert centred.mean_sample().response_input is None
    torch.manual_seed(0)
    drawn = plain.perturbed_sample(6, linearise=True)
    torch.manual_seed(0)
    offset = centred.perturbed_sample(6)
    assert drawn.linearise
    assert not offset.linearise
    assert drawn.response_input is not None
    assert offset.response_input is not None
    torch.testing.assert_close(offset.response_input, drawn.response_input - raw, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(drawn[name], offset[name]) for name in SPACE)
    assert {tuple(value.shape) for value in drawn.values.values()} == {(6,)}


@pytest.mark.parametrize("centred", [False, True])
def test_only_a_kept_graph_carries_gradients_to_the_hyperparameters(centred: bool) -> None:
    model = randomised(converted(ZOO["control flow"], centred=centred)).eval()
    inputs = inputs_of(ZOO["control flow"])
    assert isinstance(model.hyper, Tunable)
    hyper = [model.hyper.raw, model.hyper.rho]
    for sample, expected in (
        (model.perturbed_sample(5, keep_graph=True), [True, True]),
        (model.mean_sample(keep_graph=True), [True, False]),
        (model.perturbed_sample(5), [False, False]),
        (model.mean_sample(), [False, False]),
    ):
        with model.using(sample):
            loss = model(inputs).square().sum()
        gradients = torch.autograd.grad(loss, hyper, allow_unused=True)
        assert [g is not None and bool(g.abs().sum() > 0) for g in gradients] == expected


def test_no_gradient_of_the_training_loss_reaches_a_hyperparameter() -> None:
    """Not even through the values that dropout reads."""
    model = randomised(converted(ZOO["control flow"])).train()
    with model.using(model.perturbed_sample(5)):
        loss = model(inputs_of(ZOO["control flow"])).square().sum()
    gradients = torch.autograd.grad(loss, list(model.hyper.parameters()), allow_unused=True)
    assert [gradient is None for gradient in gradients] == [True, True]


def test_hyper_gradient_is_that_of_finite_differences() -> None:
    model = randomised(converted(ZOO["control flow"], "full")).double().eval()
    inputs = inputs_of(ZOO["control flow"]).double()
    assert isinstance(model.hyper, Tunable)

    def loss() -> Tensor:
        with model.using(model.mean_sample(keep_graph=True)):
            result: Tensor = model(inputs, head="a").square().sum()
        return result

    (gradient,) = torch.autograd.grad(loss(), [model.hyper.raw])
    for index in range(2):
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                model.hyper.raw[index] += step
                ends.append(float(loss()))
        with torch.no_grad():
            model.hyper.raw[index] += 1e-5
        assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_outside_a_sample_the_model_is_at_the_mean() -> None:
    model = randomised(converted(ZOO["control flow"])).eval()
    inputs = inputs_of(ZOO["control flow"])
    with torch.no_grad():
        with model.using(model.mean_sample()):
            expected = model(inputs, head="b")
        assert torch.equal(model(inputs, head="b"), expected)
        with model.using(model.hyper.constant_sample()):
            assert not torch.equal(model(inputs, head="b"), expected)
    assert not model.slot.is_set


def test_constants_make_a_plain_network_that_reads_its_rates() -> None:
    network = ZOO["control flow"]
    model = convert(
        original(network), SPACE, start={"rate": 0.0, "other": 0.0}, dropout=network.dropout, response=None, tuned=False
    )
    assert isinstance(model.hyper, Constants)
    assert model.response_parameters() == []
    assert set(model.conversion.plain.values()) == {"no response asked for"}
    assert model.mean_sample().response_input is None
    inputs = inputs_of(network)
    plain = original(network).eval()
    assert torch.equal(model.train()(inputs), plain(inputs))  # rates of zero: dropout keeps all
    with model.using(Sample({"rate": torch.tensor([0.5]), "other": torch.tensor([0.5])})):
        assert not torch.equal(model(inputs), plain(inputs))


# Dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_binds_by_path_and_by_pattern_first_match_first() -> None:
    model = convert(
        ControlFlow(), SPACE, start=START, dropout={"blocks.1.*": "other", "blocks.*": "rate"}, response=None
    )
    assert model.conversion.bound == {"blocks.0.2": "rate", "blocks.1.2": "other"}
    drop = model.network.get_submodule("drop")
    assert type(drop) is nn.Dropout  # named by nobody: it keeps its own rate
    assert drop.p == 0.5


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Dropout(), UnitDropout),
        (nn.Dropout1d(), ChannelDropout),
        (nn.Dropout2d(), ChannelDropout),
        (nn.Dropout3d(), ChannelDropout),
    ],
    ids=str,
)
def test_each_dropout_of_torch_has_its_own_form(module: nn.Module, kind: type[UnitDropout]) -> None:
    model = convert(nn.Sequential(module), SPACE, start=START, dropout={"0": "rate"})
    assert type(model.network.get_submodule("0")) is kind


def test_bound_dropout_reads_the_current_sample_and_shared_ones_read_the_same() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Dropout(0.5)
            self.second = self.first

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.second(self.first(inputs))
            return outputs

    model = convert(Twice(), SPACE, start=START, dropout={"first": "rate"}).train()
    assert model.network.get_submodule("first") is model.network.get_submodule("second")
    ones = torch.ones(2, 50_000)
    torch.manual_seed(0)
    with model.using(Sample({"rate": torch.tensor([0.0, 0.5])})):
        kept = (model(ones) != 0).double().mean(1)
    assert float(kept[0]) == 1
    assert float(kept[1]) == pytest.approx(0.25, abs=0.01)
    dropped = model(ones).eq(0).double().mean()
    assert float(dropped) == pytest.approx(1 - 0.7**2, abs=0.01)  # the start value, twice


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ({"blocks.7": "rate"}, r"dropout path 'blocks\.7' matches no dropout module; there are: blocks\.0\.2"),
        ({"stem": "rate"}, r"dropout path 'stem' matches no dropout module"),
        ({"blocks.*": "rate", "head.*": "rate"}, r"dropout path 'head\.\*' matches no dropout module"),
        ({"drop": "dropout"}, r"dropout binds the unknown hyperparameter 'dropout'; the space has rate, other"),
    ],
)
def test_wrong_dropout_binding_is_refused_with_what_there_is(dropout: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(ControlFlow(), SPACE, start=START, dropout=dropout)


def test_a_model_without_dropout_says_so() -> None:
    with pytest.raises(ValueError, match="there is none in this model"):
        convert(nn.Linear(2, 2), SPACE, start=START, dropout={"0": "rate"})


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_of_a_bound_dropout_are_not_lost_silently(register: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    getattr(model[1], register)(lambda *args: None)
    with pytest.raises(ValueError, match="dropout module '1' has hooks, which its replacement would lose"):
        convert(model, SPACE, start=START, dropout={"1": "rate"})
    assert "1" not in convert(model, SPACE, start=START).conversion.bound


# Responses --------------------------------------------------------------------------------------------------------


def test_sizes_by_path_first_match_first() -> None:
    model = convert(ControlFlow(), SPACE, start=START, response={"stem": None, "heads.*": 3, "blocks.*": "full"})
    conversion = model.conversion
    assert conversion.responding == {
        "blocks.0.0": "full",
        "blocks.1.0": "full",
        "heads.a": "rank 3",
        "heads.b": "rank 3",
    }
    asked = {path: reason for path, reason in conversion.plain.items() if path}
    assert asked == {"stem": "no response asked for", "shared": "no response asked for"}


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="response size 'gates': accepted are"):
        convert(ControlFlow(), SPACE, start=START, response="gates")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="response size 0: accepted are"):
        convert(ControlFlow(), SPACE, start=START, response={"stem": 0})
    with pytest.raises(ValueError, match=r"response path 'steam' matches no module with parameters; there are: .*stem"):
        convert(ControlFlow(), SPACE, start=START, response={"steam": "full", "*": "gate"})


@pytest.mark.parametrize("change", [{"rate": 0.95}, {"rate": None}, {"unknown": 1.0}])
def test_wrong_start_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        convert(nn.Linear(2, 2), SPACE, start={**START, **change})


def test_seed_decides_the_response_alone() -> None:
    drawn = [convert(mlp_at_seed(), SPACE, start=START, response="full", seed=seed) for seed in (1, 1, 2)]
    first, same, other = (model.state_dict() for model in drawn)
    assert all(torch.equal(first[name], same[name]) for name in first)
    differing = {name.rpartition(".")[2] for name in first if not torch.equal(first[name], other[name])}
    assert differing == {"response_weight", "response_bias"}


def mlp_at_seed() -> nn.Module:
    torch.manual_seed(0)
    return mlp()


def test_lazy_layer_is_left_plain_and_converts_once_it_knows_its_inputs() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.LazyLinear(4)
            self.out = nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.out(F.relu(self.hidden(inputs)))
            return outputs

    plain, inputs = Lazy(), torch.randn(3, 5)
    model = convert(plain, SPACE, start=START)
    assert model.conversion.responding == {"out": "gate"}
    assert "run a batch through the model before its conversion" in model.conversion.plain["hidden"]
    assert model(inputs).shape == (3, 2)
    plain(inputs)
    again = convert(plain, SPACE, start=START).eval()
    assert set(again.conversion.responding) == {"hidden", "out"}
    torch.testing.assert_close(again(inputs), plain(inputs))


def test_pruned_layer_is_left_plain_for_its_hook() -> None:
    """Pruning keeps the weight up to date by a hook; a replacement would train the wrong tensor."""
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        prune.random_unstructured(network[0], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    model = convert(network, SPACE, start=START)
    assert model.conversion.plain == {"0": "has hooks, which a replacement would lose"}
    assert model.conversion.responding == {"2": "gate"}


def test_model_that_holds_a_tensor_with_a_graph_says_why_it_cannot_be_copied() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    network.kept = network(torch.ones(1, 4))
    with pytest.raises(ValueError, match="the model cannot be copied because it holds a tensor with a graph"):
        convert(network, SPACE, start=START)


def test_shared_module_stays_shared_and_counts_once() -> None:
    model = converted(ZOO["control flow"])
    shared = model.network.get_submodule("shared")
    assert shared is model.network.get_submodule("twin")
    assert sum(layer is shared for layer in model.response_layers()) == 1


def test_batch_on_another_axis_is_refused_unless_the_batch_shares_everything() -> None:
    """As the error message advises."""

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.drop = nn.Dropout()

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.drop(self.fc(inputs.transpose(0, 1))).transpose(0, 1)
            return outputs

    inputs = torch.randn(3, 7, 4)
    model = convert(SequenceFirst(), SPACE, start=START, dropout={"drop": "rate"})
    with (
        pytest.raises(ValueError, match="the first axis must be the batch"),
        model.using(model.perturbed_sample(3)),
    ):
        model(inputs)
    shared = SearchSpace(SPACE, per_batch=SPACE)
    model = convert(SequenceFirst(), shared, start=START, dropout={"drop": "rate"})
    with model.using(model.perturbed_sample(3)):
        assert model(inputs).shape == (3, 7, 4)


def test_double_precision_network_keeps_its_precision() -> None:
    model = convert(mlp().double(), SPACE, start=START, dropout={"2": "rate"}, response="full").train()
    inputs = torch.randn(4, 5, dtype=torch.float64)
    assert {p.dtype for p in model.network.parameters()} == {torch.float64}
    with model.using(model.perturbed_sample(4)):
        assert model(inputs).dtype == torch.float64


def test_hyperparameters_live_where_the_network_does() -> None:
    model = convert(mlp().to("meta"), SPACE, start=START)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {b.device.type for b in model.buffers()} == {"meta"}
