"""Whole networks as users write them: converted, trained by the real rules, saved and loaded.

A network is one entry of `MODELS`; it then gets every test of this file.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tune_stn.data.batches import Batch
from tune_stn.data.splits import Split, Splits
from tune_stn.nn import LockedDropout, SelfTuningModel, StochasticDepth, WeightDecay, self_tuning
from tune_stn.nn.attention import ResponseMultiheadAttention
from tune_stn.nn.first_order import without_running_statistics
from tune_stn.space import Domain, LogUniform, Sample, SearchSpace, Tunable, Uniform
from tune_stn.tasks import Task, Training
from tune_stn.training import Trainer
from tune_stn.training.forward import Forward
from tune_stn.training.objectives import training_loss
from tune_stn.training.rules.delta_stn import DeltaSTN

BATCH, CLASSES, WORDS = 6, 3, 11
NO_RESPONSE = "no response layer for "
NORM = "norms=False: its affine part stays plain"

# The networks -----------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One layer used twice, and known by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.second = self.first
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.first(x)))
        outputs: Tensor = self.head(torch.relu(self.second(x)) + self.first(x))
        return outputs


def nested() -> nn.Module:
    block = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)))
    return nn.Sequential(
        block, nn.Sequential(nn.Sequential(nn.Linear(8, 6), nn.GELU()), nn.LayerNorm(6)), nn.Linear(6, 3)
    )


class ByName(nn.Module):
    """Heads in a dictionary, layers in a list, chosen in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()})
        self.hidden = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.heads = nn.ModuleDict({"main": nn.Linear(8, CLASSES), "unused": nn.Linear(8, 1)})
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor, task: str = "main") -> Tensor:
        for layer, name in zip(self.hidden, self.activations, strict=True):
            x = self.activations[name](layer(x))
        outputs: Tensor = self.heads[task](self.drop(x))
        return outputs


class LanguageModel(nn.Module):
    """Embedding, LSTM, and a decoder that shares the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(WORDS, 6)
        self.locked = LockedDropout(0.2, batch_first=True)
        self.rnn = nn.LSTM(6, 6, num_layers=2, dropout=0.2, batch_first=True)
        self.decoder = nn.Linear(6, WORDS)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.locked(self.encoder(tokens)))
        outputs: Tensor = self.decoder(self.locked(hidden))
        return outputs.flatten(0, 1)


class Recurrent(nn.Module):
    """A text classifier by a recurrent layer that has no response form."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 6)
        self.rnn = nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.words(tokens))
        outputs: Tensor = self.head(self.drop(hidden.amax(1)))
        return outputs


class Lazy(nn.Module):
    """Layers that learn their sizes from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.LazyConv1d(4, 3)
        self.hidden = nn.LazyLinear(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x.view(-1, 2, 4)).flatten(1)
        outputs: Tensor = self.head(self.drop(torch.relu(self.hidden(x))))
        return outputs


def built_lazy() -> nn.Module:
    model = Lazy()
    model(torch.zeros(1, 8))
    return model


class Frozen(nn.Module):
    """A pretrained backbone: its parameters are constants, its batch norm always in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.backbone.requires_grad_(False).eval()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(16, CLASSES)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.drop(self.backbone(images).flatten(1)))
        return outputs


class DataDependent(nn.Module):
    """How often a layer is applied, and which way is taken, depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            if float(x.detach().norm()) < 1:
                break
            x = 0.5 * torch.tanh(self.step(x))
        if bool((x.detach().mean() > 10).item()):
            x = self.other(x)
        mask = x > 0
        outputs: Tensor = self.head(self.drop(torch.where(mask, x, 0.1 * x)))
        return outputs


class Residual(nn.Module):
    """Two residual blocks with batch norm, the second of which may be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Dropout2d(0.1)
            )
            for _ in range(2)
        )
        self.depth = StochasticDepth(0.2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.blocks[0](x)
        x = x + self.depth(self.blocks[1](x))
        outputs: Tensor = self.head(x.mean((2, 3)))
        return outputs


class Transformer(nn.Module):
    """A text classifier: embedding, learned positions, encoder layers, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8, padding_idx=0)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder(self.words(tokens) + self.positions, src_key_padding_mask=tokens == 0)
        outputs: Tensor = self.head(hidden.mean(1))
        return outputs


class UNet(nn.Module):
    """Down and up again with a skip connection; an output for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.2))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.down(images)
        x = self.up(self.middle(F.max_pool2d(skip, 2)))
        outputs: Tensor = self.out(torch.cat([skip, x], dim=1))
        return outputs


class Siamese(nn.Module):
    """One encoder for two inputs, which come by name."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4))
        self.distance = nn.PReLU(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, left: Tensor, *, right: Tensor) -> Tensor:
        one, other = self.encoder(left), self.encoder(right)
        outputs: Tensor = self.head(self.distance(one * other))
        return outputs


class Pairs(nn.Module):
    """As a task gives them: `(batch, 2, features)`."""

    def __init__(self) -> None:
        super().__init__()
        self.siamese = Siamese()

    def forward(self, pairs: Tensor) -> Tensor:
        outputs: Tensor = self.siamese(pairs[:, 0], right=pairs[:, 1])
        return outputs


def weight_normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 8)),
        nn.ReLU(),
        nn.Dropout(0.2),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        nn.Linear(8, CLASSES),
    )


def tokens(examples: int) -> Tensor:
    return torch.randint(1, WORDS, (examples, 5))


def padded(examples: int) -> Tensor:
    found = tokens(examples)
    found[::2, 3:] = 0
    return found


def next_word(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.flatten())


def parametrised(path: str, kind: str = "Linear") -> dict[str, str]:
    """The reasons for a layer whose weight is computed."""
    return {
        path: f"{NO_RESPONSE}Parametrized{kind}",
        f"{path}.parametrizations.weight": f"{NO_RESPONSE}ParametrizationList",
    }


@dataclass(frozen=True, kw_only=True)
class UserModel:
    """A network, what it takes, and what is to become of it.

    Attributes:
        inputs, targets: number of examples -> a tensor of as many.
        responding: paths of the layers that get a response.
        plain: path -> why not.
        dropout: as in `self_tuning`; all read "rate".
        weight_dropout: as in `self_tuning`; all read "connect".
        idle: paths of the layers that `forward` does not come to here.
    """

    make: Callable[[], nn.Module]
    responding: set[str]
    inputs: Callable[[int], Tensor] = lambda examples: torch.randn(examples, 8)
    targets: Callable[[int], Tensor] = lambda examples: torch.randint(CLASSES, (examples,))
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    plain: Mapping[str, str] = field(default_factory=dict)
    dropout: tuple[str, ...] = ("drop",)
    weight_dropout: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    def task(self, model: Callable[[], nn.Module] | None = None, **training: Any) -> Task:
        domains: dict[str, Domain] = {"rate": Uniform(0, 0.9), "decay": LogUniform(1e-5, 1e-1)}
        start = {"rate": 0.2, "decay": 1e-3}
        if self.weight_dropout:
            domains["connect"], start["connect"] = Uniform(0, 0.9), 0.2
        return Task(
            name="user",
            model=model or self.make,
            data=self.data,
            space=SearchSpace(domains, per_batch=start.keys() & {"connect"}),
            start=start,
            loss=self.loss,
            dropout=dict.fromkeys(self.dropout, "rate"),
            weight_dropout=dict.fromkeys(self.weight_dropout, "connect"),
            penalties=(WeightDecay("decay"),),
            training=Training(
                batch_size=BATCH, train_steps=1, warmup_epochs=0, scale=0.5, optimizer="Adam", hyper_lr=0.05, **training
            ),
        )

    def data(self, seed: int) -> Splits:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Splits(*(Split(self.inputs(n), self.targets(n)) for n in (3 * BATCH, BATCH, BATCH)))


def images(examples: int) -> Tensor:
    return torch.randn(examples, 1, 6, 6)


MODELS: dict[str, UserModel] = {
    "shared": UserModel(make=Shared, responding={"first", "head"}),
    "nested": UserModel(
        make=nested,
        responding={"0.0", "1.0.0", "2"},
        plain={"1.1": NORM},
        dropout=("0.1.*",),
        weight_dropout=("2",),
    ),
    "by name": UserModel(
        make=ByName, responding={"hidden.0", "hidden.1", "heads.main", "heads.unused"}, idle=("heads.unused",)
    ),
    "language model": UserModel(
        make=LanguageModel,
        responding={"encoder", "rnn"},
        plain={"decoder": "weight shared with encoder"},
        inputs=tokens,
        targets=tokens,
        loss=next_word,
        dropout=("locked", "rnn"),
        weight_dropout=("rnn", "encoder"),
    ),
    "recurrent": UserModel(
        make=Recurrent, responding={"words", "head"}, plain={"rnn": NO_RESPONSE + "GRU"}, inputs=tokens
    ),
    "lazy, built": UserModel(make=built_lazy, responding={"convolution", "hidden", "head"}),
    "frozen": UserModel(
        make=Frozen, responding={"head"}, plain={"backbone.0": "frozen", "backbone.1": NORM}, inputs=images
    ),
    "data-dependent": UserModel(make=DataDependent, responding={"step", "other", "head"}, idle=("other",)),
    "residual": UserModel(
        make=Residual,
        responding={"stem", "blocks.0.2", "blocks.1.2", "head"},
        plain={"blocks.0.0": NORM, "blocks.1.0": NORM},
        inputs=images,
        dropout=("blocks.*", "depth"),
    ),
    "transformer": UserModel(
        make=Transformer,
        responding={"words", "head"}
        | {f"encoder.layers.{i}.{name}" for i in range(2) for name in ("self_attn", "linear1", "linear2")},
        plain={"": NO_RESPONSE + "Transformer"}
        | {f"encoder.layers.{i}.norm{j}": NORM for i in range(2) for j in (1, 2)},
        inputs=padded,
        dropout=("encoder.*",),
        weight_dropout=("words",),
    ),
    "u-net": UserModel(
        make=UNet,
        responding={"down.0", "middle.0", "up", "out"},
        plain={"down.1": NORM},
        inputs=images,
        targets=lambda examples: torch.randint(CLASSES, (examples, 6, 6)),
        dropout=("middle.2",),
        weight_dropout=("up",),
    ),
    "siamese": UserModel(
        make=Pairs,
        responding={"siamese.encoder.0", "siamese.encoder.3", "siamese.head"},
        plain={"siamese.distance": NO_RESPONSE + "PReLU"},
        inputs=lambda examples: torch.randn(examples, 2, 8),
        dropout=("siamese.encoder.*",),
    ),
    "weight-normed": UserModel(
        make=weight_normed, responding={"4"}, plain=parametrised("0") | parametrised("3"), dropout=("2",)
    ),
}
each_model = pytest.mark.parametrize("user", MODELS.values(), ids=MODELS.keys())
SIZES = ("full", 2, "gate")
ALGORITHMS = ("stn", "delta-stn")
each_size = pytest.mark.parametrize("size", SIZES)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def trained(user: UserModel, algorithm: str, **settings: Any) -> Trainer:
    """After an epoch: three training steps and as many hyper-steps."""
    trainer = Trainer(user.task(**settings), algorithm=algorithm)
    trainer.run_epoch()
    return trainer


def converted(user: UserModel, plain: nn.Module, size: Any = "gate", *, centred: bool = False) -> SelfTuningModel:
    task = user.task()
    return self_tuning(
        plain,
        task.space,
        start=task.start,
        dropout=task.dropout,
        weight_dropout=task.weight_dropout,
        response=size,
        centred=centred,
    )


def seeded(user: UserModel) -> nn.Module:
    torch.manual_seed(0)
    return user.make()


# What must hold for each ------------------------------------------------------------------------------------------


@each_model
def test_each_layer_with_parameters_responds_or_has_a_reason_not_to(user: UserModel) -> None:
    conversion = converted(user, seeded(user)).conversion
    assert set(conversion.responding) == user.responding
    assert conversion.plain == dict(user.plain)
    assert set(conversion.bound.values()) == {"rate"} | ({"connect"} if user.weight_dropout else set())


@each_model
@each_size
def test_untrained_or_at_zero_response_it_is_the_plain_network(user: UserModel, size: Any) -> None:
    plain = seeded(user).eval()
    model = converted(user, plain, size).eval()
    inputs = user.inputs(BATCH)
    with torch.no_grad():
        expected = plain(inputs)
        assert torch.allclose(model(inputs), expected, rtol=1e-4, atol=1e-5)
        with model.using(model.perturbed_sample(BATCH)):
            assert torch.allclose(model(inputs), expected, rtol=1e-4, atol=1e-5)
        with model.using(model.hyper.constant_sample()):
            assert torch.allclose(model(inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "algorithm", "size"),
    # Each model with each size and each algorithm, each algorithm with each size.
    [(name, ALGORITHMS[(i + j) % 2], size) for i, name in enumerate(MODELS) for j, size in enumerate(SIZES)],
)
def test_it_trains_and_its_hyperparameters_have_a_gradient(name: str, algorithm: str, size: Any) -> None:
    """And the original is untouched."""
    user = MODELS[name]
    plain = seeded(user)
    original = Original.of(plain)
    trainer = Trainer(user.task(lambda: plain, response=size), algorithm=algorithm)
    hyper = trainer.model.hyper
    assert isinstance(hyper, Tunable)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    report = trainer.run_epoch()
    assert trainer.diverged is None
    assert all(torch.tensor(value).isfinite() for value in report.values())
    assert hyper.raw.grad is not None
    assert bool(hyper.raw.grad.ne(0).all())
    assert bool(hyper.raw.grad.isfinite().all())
    shifts = shifts_of_all_keys(trainer.model)
    for path, parameter in trainer.model.named_parameters():
        unused = path.removeprefix("network.").startswith(user.idle or "none")
        shift = shifts.get(path, Shift(chunks=1))
        now, then = parameter.chunk(shift.chunks), before[path].chunk(shift.chunks)
        for i in range(shift.chunks):
            if i == shift.chunk:
                assert parameter.grad is not None
                assert parameter.grad.chunk(shift.chunks)[i].norm() <= 1e-5 * shift.scale, path
            else:
                assert not torch.equal(now[i], then[i]) or unused or not parameter.requires_grad, (path, i)
    original.assert_untouched(plain)
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in trainer.model.parameters()}


@dataclass(frozen=True)
class Original:
    """A network as it was."""

    modules: dict[str, int]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> Self:
        return cls({path: id(module) for path, module in network.named_modules()}, copy.deepcopy(network.state_dict()))

    def assert_untouched(self, network: nn.Module) -> None:
        assert {path: id(module) for path, module in network.named_modules()} == self.modules
        now = network.state_dict()
        assert now.keys() == self.state.keys()
        assert all(torch.equal(now[path], value) for path, value in self.state.items())


@dataclass(frozen=True)
class Shift:
    """Which of `chunks` equal parts of a parameter moves all keys of an attention by one vector.

    Attributes:
        chunk: its index; None: no part does.
        scale: norm of a gradient that comes through the same keys and is not zero.
    """

    chunks: int
    chunk: int | None = None
    scale: float = 0.0


def shifts_of_all_keys(model: nn.Module) -> dict[str, Shift]:
    """Parameter -> its part that is a bias of the keys, with the gradients of the last step for the scale.

    A softmax does not see a number that is added to all its scores. So the exact gradient of such a bias is zero. What
    is computed is rounding, and whether it moves the bias differs from processor to processor.
    """
    found = {}
    for path, layer in model.named_modules():
        if isinstance(layer, ResponseMultiheadAttention):
            assert layer.bias_k is None  # such a key would stay where it is, and the softmax would see the shift
            assert not layer.add_zero_attn
            weight = float(layer.in_proj_weight.grad.chunk(3)[1].norm())
            key = layer.projections[1]
            units = float(key.gate.grad.chunk(2)[0].norm())
            found[f"{path}.in_proj_bias"] = Shift(3, 1, weight)
            found[f"{path}.projections.1.gate"] = Shift(2, 1, units)
            found[f"{path}.projections.1.response_bias"] = Shift(1, 0, units)
    return found


@pytest.mark.slow
@each_model
@each_algorithm
def test_it_trains_in_lower_precision(user: UserModel, algorithm: str) -> None:
    trainer = trained(user, algorithm, precision="bfloat16")
    assert trainer.diverged is None
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@each_model
def test_a_fixed_run_trains_the_plain_network_with_the_same_regularisers(user: UserModel) -> None:
    trainer = trained(user, "fixed")
    assert trainer.diverged is None
    assert not trainer.stepper.parameters("response")
    assert {name.removeprefix("network.") for name in trainer.model.network.state_dict()} == set(
        seeded(user).state_dict()
    )
    assert trainer.model.conversion.bound == converted(user, seeded(user)).conversion.bound


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "residual", "transformer", "u-net"])
@each_algorithm
def test_norms_respond_where_asked_for(name: str, algorithm: str) -> None:
    user = MODELS[name]
    trainer = Trainer(replace(user.task(), norms=True), algorithm=algorithm)
    trainer.run_epoch()
    norms = {path for path, reason in user.plain.items() if reason == NORM}
    assert set(trainer.model.conversion.responding) == user.responding | norms
    assert trainer.diverged is None
    for path in norms:
        responds = [p for n, p in trainer.model.network.get_submodule(path).named_parameters() if "gate" in n]
        assert responds
        assert all(bool(parameter.any()) for parameter in responds)


@pytest.mark.slow
@each_model
@each_algorithm
def test_saved_it_loads_into_a_fresh_conversion(user: UserModel, algorithm: str) -> None:
    trainer = trained(user, algorithm)
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    other = Trainer(user.task(), algorithm=algorithm, seed=1)
    state = torch.load(file, weights_only=True)
    other.load_state_dict({**state, "seed": 1})
    now = other.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in trainer.model.state_dict().items())
    assert set(seeded(user).state_dict()) <= {name.removeprefix("network.") for name in now}
    inputs = user.inputs(BATCH)
    with torch.no_grad():
        assert torch.equal(other.model.eval()(inputs), trainer.model.eval()(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"data-dependent"}))  # which goes by the whole batch
def test_examples_respond_to_their_own_hyperparameters_alone(name: str) -> None:
    user = MODELS[name]
    model = trained(user, "stn", response="full").model.eval()
    inputs = user.inputs(BATCH)
    sample = model.perturbed_sample(BATCH)
    assert sample.response_input is not None
    with torch.no_grad():
        with model.using(sample):
            together = model(inputs)
        for i in range(BATCH):
            with model.using(sample.rows(slice(i, i + 1))):
                alone = model(inputs[i : i + 1])
            part = together.view(BATCH, -1)[i]
            assert torch.allclose(part, alone.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@each_model
@pytest.mark.usefixtures("double")
def test_tangents_pass_through_all_that_lies_between_the_layers(user: UserModel) -> None:
    """The gradient of a response step of Delta-STN is d/dt, at t = 0, of an ordinary gradient at t times the response
    input, plus that of the penalties."""
    trainer = trained(user, "delta-stn", response="full")
    assert isinstance(trainer.rule, DeltaSTN)
    response = trainer.stepper.parameters("response")
    batch = trainer.splits.train.take(torch.arange(BATCH))
    sample = trainer.model.train().perturbed_sample(BATCH, linearise=True)
    buffers = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}

    def again() -> None:
        """The same masks and the same statistics at each evaluation."""
        torch.manual_seed(7)
        for name, buffer in trainer.model.named_buffers():
            buffer.copy_(buffers[name])

    expected = gradient_by_differences(trainer.forward, response, batch, sample, again)
    trainer.model.perturbed_sample = lambda rows, **kwargs: sample  # type: ignore[method-assign]
    again()
    trainer.rule.response_step(batch)
    total = torch.stack([gradient.norm() for gradient in expected]).norm()
    assert total > 1e-6
    for parameter, gradient in zip(response, expected, strict=True):
        assert parameter.grad is not None or not gradient.any()
        assert parameter.grad is None or (parameter.grad - gradient).norm() <= 1e-8 * total


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradient_by_differences(
    forward: Forward, response: list[nn.Parameter], batch: Batch, sample: Sample, again: Callable[[], None]
) -> list[Tensor]:
    h = sample.response_input
    assert h is not None

    def at(t: float) -> Tensor:
        again()
        with without_running_statistics(forward.model):
            outputs: Tensor = forward.outputs(batch, Sample(sample.values, h * t))
        return outputs

    step = 1e-3
    near, far = ((at(s) - at(-s)).detach() / (2 * s) for s in (step / 2, step))
    prediction = (at(0) + (4 * near - far) / 3).detach().requires_grad_()
    with mock.patch.object(forward, "observed", return_value=(prediction, {})):
        loss = training_loss(forward, batch, sample)
    weights, *penalty = torch.autograd.grad(loss, [prediction, *response], materialize_grads=True)

    def slope(step: float) -> list[Tensor]:
        ends = [torch.autograd.grad(at(t), response, weights, materialize_grads=True) for t in (step, -step)]
        return [(up - down) / (2 * step) for up, down in zip(*ends, strict=True)]

    # Two steps, combined so that the error is of fourth order.
    slopes = zip(penalty, slope(step / 2), slope(step), strict=True)
    return [extra + (4 * near - far) / 3 for extra, near, far in slopes]


# What is special to one -------------------------------------------------------------------------------------------


def test_layers_not_yet_built_say_what_to_do() -> None:
    model = converted(MODELS["lazy, built"], Lazy())
    assert set(model.conversion.responding) == {"head"}
    for path in ("convolution", "hidden"):
        assert "run a batch through the model before its conversion" in model.conversion.plain[path]


def test_a_module_under_two_names_is_one_after_it_too() -> None:
    network = converted(MODELS["shared"], Shared()).network
    assert network.get_submodule("first") is network.get_submodule("second")


def test_frozen_backbone_keeps_its_statistics() -> None:
    trainer = trained(MODELS["frozen"], "delta-stn")
    norm = trainer.model.network.get_submodule("backbone.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 0
    assert not norm.training
