"""Losses over whole splits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.splits import Split, Splits
from tune_stn.data.text import Text
from tune_stn.nn import LockedDropout
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task, Training, accuracy, get_task, mean_over_examples
from tune_stn.tasks.language import PERPLEXITY, token_loss
from tune_stn.tasks.task import OfMean
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


# What is no mean over examples ----------------------------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self, contained: bool) -> None:
        super().__init__()
        self.fc, self.dropout, self.contained = nn.Linear(4, 2), nn.Dropout(), contained

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(self.dropout(x))
        return {"logits": logits, "hidden": (x, None)} if self.contained else logits


def logits_of(outputs: Any) -> Tensor:
    found: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs
    return found


def f1(outputs: Any, targets: Tensor) -> Tensor:
    predicted = logits_of(outputs).argmax(1)
    both = ((predicted == 1) & (targets == 1)).sum()
    return 2 * both / ((predicted == 1).sum() + (targets == 1).sum()).clamp(min=1)


def auc(outputs: Any, targets: Tensor) -> Tensor:
    scores = logits_of(outputs).diff(dim=1).squeeze(1)
    above = scores[targets == 1][:, None] > scores[targets == 0][None]
    return above.float().mean() if above.numel() else torch.tensor(0.0)


def weighted(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(outputs), targets, weight=torch.tensor([1.0, 20.0]), ignore_index=7)


LOSSES: dict[str, Any] = {
    "class weights": weighted,
    "a module with class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 20.0]), ignore_index=7),
    "a mean": F.cross_entropy,
}


@pytest.mark.parametrize("size", [1, 7, 30, 41, 500])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_metrics_are_those_of_the_whole_split(loss: str, size: int) -> None:
    """Whatever the batches: of targets sorted by class, of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(123, 4, generator=generator)
    targets = (inputs[:, 0] > 0.8).long().sort().values
    contained, ignored = loss == "class weights", -100 if loss == "a mean" else 7
    targets[::5] = ignored
    split = Split(inputs, targets)
    task = Task(
        name="classes",
        model=lambda: Classifier(contained),
        data=lambda seed: Splits(split, split, split),
        space=SearchSpace({"rate": Uniform(0, 0.9)}),
        start={"rate": 0.3},
        loss=LOSSES[loss],
        dropout={"dropout": "rate"},
        metrics={"f1": f1, "auc": auc, "error": OfMean(f1, lambda value: 1 - value)},
        training=Training(batch_size=20, eval_batch_size=size),
    )
    trainer = Trainer(task, algorithm="fixed")
    report = evaluate(trainer.forward, trainer.splits)
    with torch.no_grad():
        outputs = trainer.model(inputs)
    assert report["val_loss"] == pytest.approx(float(LOSSES[loss](outputs, targets)), rel=1e-5)
    assert report["test_f1"] == pytest.approx(float(f1(outputs, targets)), rel=1e-5)
    assert report["val_auc"] == pytest.approx(float(auc(outputs, targets)), rel=1e-5)
    assert report["val_error"] == pytest.approx(1 - report["val_f1"])


PAD = 0


def of_tokens(outputs: Any, targets: Tensor, ignore_index: int = PAD) -> Tensor:
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index)


def with_count(outputs: Tensor, targets: Any) -> Tensor:
    return of_tokens(outputs, targets["words"])


class Tokens(nn.Module):
    """Logits `(batch, time, words)`, or `(batch, words, time)` as `nn.CrossEntropyLoss` wants them."""

    def __init__(self, channels: bool) -> None:
        super().__init__()
        self.embedding, self.dropout, self.decoder = nn.Embedding(WORDS, 4), nn.Dropout(), nn.Linear(4, WORDS)
        self.channels = channels

    def forward(self, tokens: Tensor, state: None = None) -> Tensor:
        logits: Tensor = self.decoder(self.dropout(self.embedding(tokens)))
        return logits.mT if self.channels else logits


class Stateful(Tokens):
    def forward(self, tokens: Tensor, state: None = None) -> Any:
        return super().forward(tokens), None


@pytest.mark.parametrize("size", [1, 3, 7, 500])
@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (nn.CrossEntropyLoss(ignore_index=PAD), PAD),
        (nn.CrossEntropyLoss(), -100),
        (mean_over_examples(partial(of_tokens, ignore_index=PAD)), PAD),
        (mean_over_examples(partial(of_tokens, ignore_index=-100)), -100),
        (mean_over_examples(count=lambda targets: (targets["words"] != PAD).sum())(with_count), PAD),
        ("recurrent", PAD),
    ],
)
def test_a_loss_over_tokens_is_their_mean_whatever_is_ignored(loss: Any, ignored: int, size: int) -> None:
    """Of sentences of very different lengths; and so is the accuracy of the tokens that are not -100."""
    channels, contained, recurrent = isinstance(loss, nn.Module), loss is with_count, loss == "recurrent"
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, WORDS, (23, 6), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[torch.arange(6) >= torch.randint(7, (23, 1), generator=generator).sort(0).values] = ignored
    split = Split(tokens, {"words": targets} if contained else targets)
    task = Task(
        name="sentences",
        model=lambda: (Stateful if recurrent else Tokens)(channels),
        data=lambda seed: Splits(split, split, split),
        space=SearchSpace({"rate": Uniform(0, 0.9)}),
        start={"rate": 0.3},
        loss=of_tokens if recurrent else loss,
        dropout={"dropout": "rate"},
        metrics={"accuracy": accuracy} if ignored == -100 and not channels else {},
        recurrent=recurrent,
        training=Training(batch_size=20, eval_batch_size=size),
    )
    trainer = Trainer(task, algorithm="fixed")
    report = evaluate(trainer.forward, trainer.splits)
    with torch.no_grad():
        logits = trainer.model(tokens)
    logits = logits[0] if recurrent else logits.mT if channels else logits
    assert report["val_loss"] == pytest.approx(float(of_tokens(logits, targets, ignored)), rel=1e-5)
    if task.metrics:
        right = (logits.argmax(-1) == targets)[targets != ignored]
        assert report["val_accuracy"] == pytest.approx(float(right.float().mean()), rel=1e-5)


def test_outputs_that_cannot_be_put_together_or_kept_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Varying(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.dropout(x)) if len(x) > 5 else self.fc(self.dropout(x))[:, :1]

    def mine(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().mean()

    split = Split(torch.randn(13, 4), torch.zeros(13).long())
    task = Task(
        name="varying",
        model=lambda: Varying(False),
        data=lambda seed: Splits(split, split, split),
        space=SearchSpace({"rate": Uniform(0, 0.9)}),
        start={"rate": 0.3},
        loss=mine,
        dropout={"dropout": "rate"},
        training=Training(batch_size=10, eval_batch_size=10),
    )
    trainer = Trainer(task, algorithm="fixed")
    with pytest.raises(ValueError, match=r"mine of task 'varying' .* cannot be put together .*mean_over_examples"):
        evaluate(trainer.forward, trainer.splits)
    monkeypatch.setattr("tune_stn.training.evaluation.MOST_KEPT", 10)
    with pytest.raises(ValueError, match=r"mine of task 'varying' .* more than 10 numbers: if it is a mean over"):
        evaluate(trainer.forward, trainer.splits)
    marked = replace(task, loss=mean_over_examples(mine))
    trainer = Trainer(marked, algorithm="fixed")
    assert evaluate(trainer.forward, trainer.splits)["val_loss"] > 0


def test_a_metric_that_would_hide_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="metrics of task 'digits-mlp': 'loss' is the name of its loss"):
        replace(get_task("digits-mlp"), metrics={"loss": f1})
