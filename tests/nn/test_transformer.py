"""Networks made of torch's transformer layers, untouched, and a decoder-only one as users write them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tune_stn.data.splits import Split, Splits
from tune_stn.nn import SelfTuningModel
from tune_stn.nn import self_tuning as convert
from tune_stn.nn.attention import ResponseMultiheadAttention
from tune_stn.nn.response import ResponseSize
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample
from tune_stn.tasks import Task, Training
from tune_stn.training import Trainer
from tune_stn.training.rules.delta_stn import constants

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.1, "other": 0.1}
BATCH, LENGTH, WORDS = 3, 5, 7
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 1, 4, 0, 0], [3, 3, 2, 1, 0]])  # 0 pads


def layer_settings(**settings: object) -> dict[str, object]:
    return {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "batch_first": True, **settings}


class Encoder(nn.Module):
    """Classifies padded sequences."""

    def __init__(
        self,
        layer: type[nn.TransformerEncoderLayer] = nn.TransformerEncoderLayer,
        nested: bool = False,
        **settings: object,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.encoder = nn.TransformerEncoder(
            layer(**layer_settings(**settings)),  # type: ignore[arg-type]
            2,
            norm=nn.LayerNorm(8),
            enable_nested_tensor=nested,
        )
        self.head = nn.Linear(8, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0)
        outputs: Tensor = self.head(hidden[:, 0])
        return outputs


class OwnLayer(nn.TransformerEncoderLayer):
    """A user's variant with a forward of its own."""

    def forward(self, src: Tensor, src_mask: Tensor | None = None, **masks: object) -> Tensor:
        attended, _ = self.self_attn(src, src, src, key_padding_mask=masks["src_key_padding_mask"])
        return self.norm2(src + torch.sigmoid(attended) * self.linear2(self.dropout(F.silu(self.linear1(src)))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Attends to a memory, causally to itself; a tensor for each mask that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer_settings(norm_first=True)), 2)  # type: ignore[arg-type]
        self.head = nn.Linear(8, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        later = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=hidden.dtype)
        hidden = self.decoder(hidden, hidden.flip(1), tgt_mask=later, memory_key_padding_mask=tokens.flip(1) == 0)
        outputs: Tensor = self.head(hidden)
        return outputs


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.transformer = nn.Transformer(
            8, 2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=12, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(8, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        later = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=hidden.dtype)
        outputs: Tensor = self.head(self.transformer(hidden, hidden.roll(1, 1), tgt_mask=later, tgt_is_causal=True))
        return outputs


class CausalSelfAttention(nn.Module):
    """One product for query, key and value, and torch's function: as nanoGPT has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in self.qkv(inputs).chunk(3, 2))
        outputs = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(outputs.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads)
        self.inner = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width), nn.Dropout(0.1))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs + self.attention(self.norm1(inputs))
        outputs: Tensor = hidden + self.inner(self.norm2(hidden))
        return outputs


class GPT(nn.Module):
    """Decoder only; the head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.positions = nn.Embedding(LENGTH, 8)
        self.blocks = nn.Sequential(Block(8, 2), Block(8, 2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        # Expanded, for without a batch axis an embedding that responds does not know whose response to take.
        hidden = self.embedding(tokens) + self.positions(torch.arange(LENGTH).expand_as(tokens))
        outputs: Tensor = self.head(self.norm(self.blocks(hidden)))
        return outputs


@dataclass(frozen=True)
class Network:
    make: Callable[[], nn.Module]
    dropout: tuple[str, ...]
    """Patterns of the modules that drop, each at a rate of its own unless bound."""


NETWORKS = {
    "encoder": Network(Encoder, ("*.self_attn", "*.dropout*")),
    "encoder, norm first, gelu": Network(
        lambda: Encoder(norm_first=True, activation="gelu"), ("*.self_attn", "*.dropout*")
    ),
    "encoder of own layers": Network(lambda: Encoder(OwnLayer), ("*.self_attn", "*.dropout*")),
    "decoder": Network(Decoder, ("*.self_attn", "*.multihead_attn", "*.dropout*")),
    "transformer": Network(Translator, ("*.self_attn", "*.multihead_attn", "*.dropout*")),
    "gpt": Network(GPT, ("*.inner.3",)),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


def original(network: Network) -> nn.Module:
    torch.manual_seed(0)
    model = network.make().double()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)  # torch's layers of a stack start alike
    return model


def converted(network: Network, size: ResponseSize = "gate", *, norms: bool = True) -> SelfTuningModel:
    """All that drops reads the rate; with a response that is not zero."""
    dropout = dict.fromkeys(network.dropout, "rate")
    model = convert(original(network), SPACE, start=START, dropout=dropout, response=size, norms=norms, seed=3).double()
    torch.manual_seed(2)
    for parameter in model.response_parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def rates(value: float) -> dict[str, Tensor]:
    return {"rate": torch.tensor([value], dtype=torch.float64)}


def rows() -> Tensor:
    return torch.randn(BATCH, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


# Conversion --------------------------------------------------------------------------------------------------------


def test_layers_of_torch_are_converted_in_place() -> None:
    model = converted(NETWORKS["transformer"])
    encoder = {"self_attn", "linear1", "linear2", "norm1", "norm2"}
    layers = {f"transformer.encoder.layers.0.{name}" for name in encoder}
    layers |= {f"transformer.decoder.layers.0.{name}" for name in encoder | {"multihead_attn", "norm3"}}
    rest = {"embedding", "head", "transformer.encoder.norm", "transformer.decoder.norm"}
    assert set(model.conversion.responding) == layers | rest
    assert not model.conversion.plain
    drops = {"dropout", "dropout1", "dropout2", "self_attn"}
    bound = {f"transformer.encoder.layers.0.{name}" for name in drops}
    bound |= {f"transformer.decoder.layers.0.{name}" for name in drops | {"dropout3", "multihead_attn"}}
    assert set(model.conversion.bound) == bound
    attention = model.network.get_submodule("transformer.encoder.layers.0.self_attn")
    assert isinstance(attention, ResponseMultiheadAttention)
    assert attention.dropout_rate == "rate"


def test_attention_that_is_left_plain_keeps_its_out_proj_plain() -> None:
    """Torch's forward reads the weight of `out_proj` past its forward."""
    model = convert(Encoder(), SPACE, start=START, response={"*.self_attn": None, "*": "gate"})
    assert model.conversion.plain["encoder.layers.0.self_attn"] == "no response asked for"
    assert "encoder.layers.0.self_attn.out_proj" in model.conversion.plain
    assert "encoder.layers.0.linear1" in model.conversion.responding


# Values ------------------------------------------------------------------------------------------------------------


@contextmanager
def mode(model: nn.Module, name: str) -> Iterator[None]:
    model.train(name == "train")
    with torch.no_grad() if name == "eval without gradients" else nullcontext():
        yield


each_mode = pytest.mark.parametrize("name", ["train", "eval", "eval without gradients"])


@pytest.mark.slow
@each_network
@each_mode
@pytest.mark.parametrize("norms", [True, False])
def test_each_example_has_its_own_response_in_each_mode(network: Network, name: str, norms: bool) -> None:
    """No inference path of torch reads the parameters past the layers that respond."""
    model = converted(network, norms=norms)
    outputs = []
    with mode(model, name):
        for sample in (None, *rows().split(1), rows()):
            with model.using(Sample(rates(0.0), sample)):
                outputs.append(model(TOKENS))
    plain, *merged, together = outputs
    assert torch.backends.mha.get_fastpath_enabled()
    for i in range(BATCH):
        torch.testing.assert_close(together[i], merged[i][i], rtol=1e-9, atol=1e-10)
        assert not torch.allclose(together[i], plain[i], atol=1e-2)


@pytest.mark.parametrize("only", ["self_attn", "linear1", "linear2", "norm1"])
def test_one_layer_that_responds_is_enough(only: str) -> None:
    """Whichever it is, its response counts in the inference of a whole stack."""
    torch.manual_seed(0)
    model = convert(Encoder(), SPACE, start=START, response={f"*.{only}": "gate"}, norms=True).eval()
    for parameter in model.response_parameters():
        nn.init.normal_(parameter)
    row = torch.ones(1, 2)
    with torch.no_grad():
        with model.using(Sample({}, row)):
            inference = model(TOKENS)
        with model.using(Sample({})):
            assert not torch.allclose(model(TOKENS), inference, atol=1e-3)
    with model.using(Sample({}, row)):
        torch.testing.assert_close(model(TOKENS), inference, rtol=1e-4, atol=1e-5)


@each_network
@each_mode
def test_without_a_response_it_is_the_original(network: Network, name: str) -> None:
    """In inference bit for bit, on whatever path torch takes."""
    model, plain = converted(network), original(network)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    plain.train(name == "train")
    with mode(model, name), model.using(Sample(rates(0.0))):
        found = model(TOKENS)
        expected = plain(TOKENS)
    if name == "eval without gradients":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # torch's, of its own path
def test_padding_is_left_out_of_inference_only_without_a_response() -> None:
    """Torch makes a stack's padded input a nested tensor there, which its layers give to their kernels alone."""
    network = Network(lambda: Encoder(nested=True), ())
    model, plain = converted(network).eval(), original(network).eval()
    with torch.no_grad():
        with model.using(Sample({})):
            assert torch.equal(model(TOKENS), plain(TOKENS))
        with model.using(Sample({}, rows())):
            inference = model(TOKENS)
    with model.using(Sample({}, rows())):
        torch.testing.assert_close(inference, model(TOKENS), rtol=1e-9, atol=1e-10)


# Linearised --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_network
@pytest.mark.parametrize(
    ("size", "dtype"), [("full", torch.float64), (2, torch.float64), ("gate", torch.float64), ("gate", torch.float32)]
)
def test_response_step_is_that_of_double_backward(network: Network, size: ResponseSize, dtype: torch.dtype) -> None:
    """Tangent and gradient of the loss, through norms, activations, attention, residuals, masks and cross entropy."""
    model = converted(network, size).to(dtype).train()
    parameters, h = model.response_parameters(), rows().to(dtype)

    def outputs(response_input: Tensor | None, *, linearise: bool = False) -> Tensor:
        torch.manual_seed(5)
        with model.using(Sample(rates(0.4), response_input, linearise)):
            result: Tensor = model(TOKENS)
        return result

    def gradients(prediction: Tensor) -> Tensor:
        loss = F.cross_entropy(prediction.flatten(0, -2), TOKENS.flatten()[: prediction.flatten(0, -2).shape[0]])
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])

    with constants(model.base_parameters()), sdpa_kernel(SDPBackend.MATH):
        with forward_ad.dual_level():
            value, tangent = forward_ad.unpack_dual(outputs(h, linearise=True))  # type: ignore[no-untyped-call]
        ours = gradients(value + tangent)
        jvp = torch.autograd.functional.jvp
        at_zero, expected = jvp(outputs, torch.zeros_like(h), h, create_graph=True)  # type: ignore[no-untyped-call]
        theirs = gradients(at_zero.detach() + expected)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    for found, wanted in ((value, at_zero), (tangent, expected), (ours, theirs)):
        assert bool((found - wanted).norm() <= tolerance * wanted.norm())
        assert bool(wanted.norm() > 1e-3)


@each_network
def test_tangent_is_the_slope(network: Network) -> None:
    model = converted(network, "full").train()
    h = rows()

    def outputs(response_input: Tensor, *, linearise: bool = False) -> Tensor:
        torch.manual_seed(5)
        with model.using(Sample(rates(0.4), response_input, linearise)):
            result: Tensor = model(TOKENS)
        return result

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        _, tangent = forward_ad.unpack_dual(outputs(h, linearise=True))  # type: ignore[no-untyped-call]
        slope = (outputs(1e-5 * h) - outputs(-1e-5 * h)) / 2e-5
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-7)


# Training ----------------------------------------------------------------------------------------------------------


def last_word(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs if outputs.dim() == 2 else outputs[:, -1], targets)


def sequences(seed: int) -> Splits:
    """The class of a sequence is its first word."""
    generator = torch.Generator().manual_seed(seed)

    def split(examples: int) -> Split:
        tokens = torch.randint(1, WORDS, (examples, LENGTH), generator=generator)
        tokens[1::2, 3:] = 0
        return Split(tokens, tokens[:, 0])

    return Splits(train=split(24), valid=split(8), test=split(8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [*((name, algorithm) for name in NETWORKS for algorithm in ("stn", "delta-stn")), ("encoder", "fixed")],
)
def test_it_trains(name: str, algorithm: str) -> None:
    """A few epochs without a warning: the loss falls, the hyperparameters move."""
    network = NETWORKS[name]
    task = Task(
        name="words",
        model=network.make,
        data=sequences,
        space=SearchSpace({"rate": SPACE["rate"]}),
        start={"rate": START["rate"]},
        loss=last_word,
        dropout=dict.fromkeys(network.dropout, "rate"),
        norms=True,
        training=Training(
            batch_size=8, optimizer="Adam", lr=0.02, hyper_lr=0.02, train_steps=2, warmup_epochs=0, scale=0.5
        ),
    )
    trainer = Trainer(task, algorithm=algorithm)
    before = copy.deepcopy(trainer.model.hyper.mean_values())
    with sdpa_kernel(SDPBackend.MATH):
        first, *_, last = (trainer.run_epoch() for _ in range(3))
    assert trainer.diverged is None
    assert last["train_loss"] < first["train_loss"]
    assert (trainer.model.hyper.mean_values() == before) == (algorithm == "fixed")
