"""What the language tasks share: the LSTM of the STN paper, its seven hyperparameters, loss and perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.corpus import Vocabulary
from tune_stn.data.splits import Splits
from tune_stn.data.text import Text
from tune_stn.nn.modules import LockedDropout
from tune_stn.nn.penalties import ActivationNorm, TemporalActivationNorm
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks.task import OfMean, mean_over_examples

State = list[tuple[Tensor, Tensor]]


@mean_over_examples
def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens, in nats.

    Args:
        outputs: Logits of shape `(batch, time, words)`.
        targets: Numbers of words, shape `(batch, time)`, of which -100 count for nothing; or probabilities, of the
            shape of the outputs.
    """
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1))


def _exponential(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf  # a diverging run is told by its loss


PERPLEXITY = OfMean(token_loss, _exponential)


class LanguageLSTM(nn.Module):
    """Embedding, LSTM layers with locked dropout around each, and a decoder that shares the embedding's weights.

    The network of the STN paper (arXiv 1903.03088, section 5.2; after arXiv 1708.02182), called as
    `model(tokens, state)`: tokens `(batch, time)`, logits `(batch, time, words)`; the state None at the beginning.

    Args:
        words: Size of the vocabulary.
        hidden: Width of the embedding and of every layer.
        layers: Number of LSTM layers.
    """

    def __init__(self, words: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        self.dropout_input = LockedDropout(batch_first=True)
        self.layers = nn.ModuleList(nn.LSTM(hidden, hidden, batch_first=True) for _ in range(layers))
        self.dropout_hidden = LockedDropout(batch_first=True)
        self.dropout_output = LockedDropout(batch_first=True)
        self.decoder = nn.Linear(hidden, words)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        outputs = self.dropout_input(self.embedding(tokens))
        after: State = []
        for number, layer in enumerate(self.layers):
            if number > 0:
                outputs = self.dropout_hidden(outputs)
            outputs, last = layer(outputs, None if state is None else state[number])
            after.append(last)
        return self.decoder(self.dropout_output(outputs)), after


def lstm_language_model(words: int, hidden: int, layers: int) -> dict[str, Any]:
    """A `LanguageLSTM` with its loss, its seven hyperparameters and where it reads them: these arguments of a `Task`.

    Dropout of the input, between the layers and of the output (one mask for each example and unit), of whole words of
    the embedding and of the hidden-to-hidden weights (one draw a batch), and the strengths of activation
    regularisation and of its temporal form (AR and TAR, arXiv 1708.01009).
    """
    rates = ("dropout_input", "dropout_hidden", "dropout_output", "dropout_embedding", "dropout_weight")
    strengths = {"alpha": Uniform(0.0, 4.0), "beta": Uniform(0.0, 4.0)}
    space = SearchSpace(
        {name: Uniform(0.0, 0.95) for name in rates} | strengths, per_batch=["dropout_embedding", "dropout_weight"]
    )
    return {
        "model": lambda: LanguageLSTM(words, hidden, layers),
        "loss": token_loss,
        "metrics": {"perplexity": PERPLEXITY},
        "recurrent": True,
        "space": space,
        "start": dict.fromkeys(space, 0.05),
        "dropout": {name: name for name in ("dropout_input", "dropout_hidden", "dropout_output")},
        "weight_dropout": {"embedding": "dropout_embedding", "layers.*": "dropout_weight"},
        "penalties": (
            ActivationNorm("alpha", "dropout_output"),
            TemporalActivationNorm("beta", f"layers.{layers - 1}"),
        ),
    }


def text_splits(
    words: Mapping[str, Sequence[str]], lengths: Mapping[str, int | None], vocabulary: int, window: int
) -> Splits:
    """Splits that go on from batch to batch, with `window` tokens a batch; the rest is as for `encoded`."""
    return Splits(**{split: Text(part, window) for split, part in encoded(words, lengths, vocabulary).items()})


def encoded(
    words: Mapping[str, Sequence[str]], lengths: Mapping[str, int | None], vocabulary: int
) -> dict[str, Tensor]:
    """The first tokens of each split, numbered by the vocabulary that the part for training has.

    Args:
        words: Name of the split -> its words.
        lengths: Name of the split -> number of tokens wanted of it; None for all.
        vocabulary: Number of the most frequent words that keep their names; the others become `<unk>`.

    Raises:
        ValueError: a split has fewer tokens than are wanted, or fewer than two are.
    """
    parts: dict[str, Sequence[str]] = {}
    for split, length in lengths.items():
        if length is not None and not 2 <= length <= len(words[split]):
            raise ValueError(f"{split}_tokens={length}: accepted is 2 to {len(words[split])}")
        parts[split] = words[split][:length]
    known = Vocabulary.of(parts["train"], size=vocabulary)
    return {split: known.encode(part) for split, part in parts.items()}
