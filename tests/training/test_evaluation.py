"""Losses over whole splits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.splits import Splits
from tune_stn.data.text import Text
from tune_stn.nn import LockedDropout
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task, Training
from tune_stn.tasks.language import PERPLEXITY, token_loss
from tune_stn.training import Trainer
from tune_stn.training.evaluation import evaluate

WORDS, HIDDEN = 7, 4


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.dropout = LockedDropout(batch_first=True)
        self.decoder = nn.Linear(HIDDEN, WORDS)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.lstm(self.embedding(tokens), state)
        return self.decoder(self.dropout(outputs)), state


def text(count: int, seed: int) -> Text:
    return Text(torch.randint(WORDS, (count,), generator=torch.Generator().manual_seed(seed)), 5)


def mean_loss(network: nn.Module, text: Text, columns: int) -> float:
    """Column by column, each from its beginning to its end in one piece."""
    rows = min(columns, len(text))
    length = -(-len(text) // rows)
    total, count = 0.0, 0
    for start in range(0, len(text), length):
        stop = min(start + length, len(text))
        with torch.no_grad():
            outputs, _ = network(text.tokens[None, start:stop])
        losses = F.cross_entropy(outputs[0], text.tokens[start + 1 : stop + 1], reduction="none")
        total, count = total + float(losses.sum()), count + len(losses)
    assert count == len(text)
    return total / count


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 500])
def test_of_a_text_it_is_the_mean_over_every_token_but_the_first(columns: int) -> None:
    task = Task(
        name="words",
        model=Network,
        data=lambda seed: Splits(text(60, 0), text(97, 1), text(58, 2)),
        space=SearchSpace({"dropout": Uniform(0, 0.9)}),
        start={"dropout": 0.3},
        loss=token_loss,
        dropout={"dropout": "dropout"},
        metrics={"perplexity": PERPLEXITY},
        recurrent=True,
        training=Training(batch_size=4, eval_batch_size=columns),
    )
    trainer = Trainer(task, algorithm="fixed")
    report = evaluate(trainer.forward, trainer.splits)
    plain = Network()
    plain.load_state_dict(trainer.model.network.state_dict())
    plain.eval()
    for prefix, split in (("val", trainer.splits.valid), ("test", trainer.splits.test)):
        assert isinstance(split, Text)
        expected = mean_loss(plain, split, columns)
        assert report[f"{prefix}_loss"] == pytest.approx(expected, rel=1e-5)
        assert report[f"{prefix}_perplexity"] == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-5)


def test_a_metric_that_is_the_loss_is_computed_once(make_task: Any) -> None:
    calls: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return F.cross_entropy(outputs, targets)

    trainer = Trainer(make_task(loss=loss), algorithm="fixed")
    calls.clear()
    evaluate(trainer.forward, trainer.splits)
    assert sum(calls) == len(trainer.splits.valid) + len(trainer.splits.test)
