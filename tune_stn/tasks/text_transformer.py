"""Paradise Lost, in a small decoder-only transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tune_stn.data import paradise_lost
from tune_stn.data.augment import LabelSmoothing
from tune_stn.data.splits import Splits
from tune_stn.data.text import passages
from tune_stn.nn.modules import StochasticDepth
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import LogUniform, SearchSpace, Uniform
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.language import PERPLEXITY, encoded, token_loss
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task


def text_transformer(
    *,
    width: int = 96,
    heads: int = 4,
    layers: int = 3,
    window: int = 48,
    train_tokens: int | None = None,
    valid_tokens: int | None = None,
    test_tokens: int | None = None,
    vocabulary: int = 2000,
) -> Task:
    """Paradise Lost (inside the package), a transformer of three blocks, six hyperparameters: dropouts and penalties.

    Dropout of the embedding, of attention and of the residual branches, stochastic depth, weight decay and label
    smoothing. Every passage of `window` tokens is an example of its own, read from its beginning.
    """
    check_sizes(width=width, heads=heads, layers=layers, window=window, vocabulary=vocabulary)
    if width % heads:
        raise ValueError(f"heads={heads}: accepted is a number that divides width={width}")
    lengths = {"train": train_tokens, "valid": valid_tokens, "test": test_tokens}
    return Task(
        name="text-transformer",
        description="Paradise Lost, transformer",
        model=lambda: LanguageTransformer(vocabulary, width, heads, layers, window),
        data=lambda seed: _load(lengths, vocabulary, window),
        space=SearchSpace(
            {
                "dropout_embedding": Uniform(0.0, 0.9),
                "dropout_attention": Uniform(0.0, 0.9),
                "dropout_residual": Uniform(0.0, 0.9),
                "stochastic_depth": Uniform(0.0, 0.9),
                "weight_decay": LogUniform(1e-6, 1e-1),
                "label_smoothing": Uniform(0.0, 0.5),
            }
        ),
        start={
            "dropout_embedding": 0.05,
            "dropout_attention": 0.05,
            "dropout_residual": 0.05,
            "stochastic_depth": 0.05,
            "weight_decay": 1e-5,
            "label_smoothing": 0.02,
        },
        loss=token_loss,
        dropout={
            "dropout": "dropout_embedding",
            "blocks.*.attention": "dropout_attention",
            "blocks.*.dropout": "dropout_residual",
            "blocks.*.depth": "stochastic_depth",
        },
        label_augmentations=(LabelSmoothing("label_smoothing", classes=vocabulary),),
        penalties=(WeightDecay("weight_decay"),),
        metrics={"perplexity": PERPLEXITY},
        training=Training(
            epochs=30,
            batch_size=16,
            optimizer="Adam",
            lr=1e-3,
            clip_norm=1.0,
            eval_batch_size=32,
            hyper_optimizer="Adam",
            train_steps=2,
            warmup_epochs=1,
            scale=0.5,
            response="gate",  # a full response is a second table of all words, and twice the work
        ),
    )


class LanguageTransformer(nn.Module):
    """Embedding and positions, blocks of causal attention and a hidden layer, and a decoder tied to the embedding.

    Layer normalisation comes first in each branch (arXiv 2002.04745). Tokens `(batch, time)`, time at most `window`;
    logits `(batch, time, words)`.

    Args:
        words: Size of the vocabulary.
        width: Width of the embedding and the residual stream; hidden layers are four times as wide.
        heads: Number of heads of each attention.
        layers: Number of blocks.
        window: Length of the longest passage, in tokens.
    """

    def __init__(self, words: int, width: int, heads: int, layers: int, window: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(torch.randn(window, width) * 0.02)
        self.dropout = nn.Dropout()
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, words)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        later = torch.ones(time, time, dtype=torch.bool, device=tokens.device).triu(1)
        hidden = self.dropout(self.embedding(tokens) + self.position[:time])
        for block in self.blocks:
            hidden = block(hidden, later)
        return self.decoder(self.norm(hidden))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Two residual branches: attention to what comes before, and a hidden layer; `(batch, time, width)`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.hidden, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout()
        self.depth = StochasticDepth()

    def forward(self, inputs: Tensor, later: Tensor) -> Tensor:
        """`later` is true where a token may not look."""
        normed = self.norm_1(inputs)
        attended = self.attention(normed, normed, normed, attn_mask=later, is_causal=True, need_weights=False)[0]
        inputs = inputs + self.depth(self.dropout(attended))
        hidden = nn.functional.gelu(self.hidden(self.norm_2(inputs)))
        outputs: Tensor = inputs + self.depth(self.dropout(self.output(hidden)))
        return outputs


def _load(lengths: Mapping[str, int | None], vocabulary: int, window: int) -> Splits:
    tokens = encoded(paradise_lost.load(), lengths, vocabulary)
    return Splits(**{split: passages(part, window, full=split == "train") for split, part in tokens.items()})
