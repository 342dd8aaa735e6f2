"""Texts in training: carried states, evaluation over whole splits, exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.batches import Batch
from tune_stn.data.splits import Splits
from tune_stn.data.text import Text
from tune_stn.nn import LockedDropout
from tune_stn.nn.penalties import ActivationNorm, TemporalActivationNorm
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task, Training
from tune_stn.tasks.language import PERPLEXITY, token_loss
from tune_stn.training import Trainer, load_state, save_state

ALGORITHMS = ("fixed", "stn", "delta-stn", "progress-ratio", "auto")
WORDS, HIDDEN, WINDOW = 7, 4, 5
Differences = Callable[[Trainer, Trainer], list[str]]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.dropout = LockedDropout(0.0, batch_first=True)
        self.decoder = nn.Linear(HIDDEN, WORDS)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.lstm(self.embedding(tokens), state)
        return self.decoder(self.dropout(outputs)), state


def tokens(count: int, seed: int) -> Tensor:
    """A text with something to learn: a word often follows its predecessor in the alphabet."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.where(torch.rand(count, generator=generator) < 0.7, 1, 3)
    return steps.cumsum(0) % WORDS


def task(**training: Any) -> Task:
    settings: dict[str, Any] = {"epochs": 6, "batch_size": 4, "eval_batch_size": 3, "lr": 0.5, "clip_norm": 1.0}
    return Task(
        name="words",
        model=Network,
        data=lambda seed: Splits(*(Text(tokens(count, number), WINDOW) for number, count in enumerate((130, 97, 58)))),
        space=SearchSpace(
            {"dropout": Uniform(0, 0.9), "words": Uniform(0, 0.9), "alpha": Uniform(0, 1), "beta": Uniform(0, 1)},
            per_batch=["words"],
        ),
        start={"dropout": 0.1, "words": 0.1, "alpha": 0.1, "beta": 0.1},
        loss=token_loss,
        dropout={"dropout": "dropout"},
        weight_dropout={"embedding": "words"},
        penalties=(ActivationNorm("alpha", "dropout"), TemporalActivationNorm("beta", "lstm")),
        metrics={"perplexity": PERPLEXITY},
        recurrent=True,
        training=Training(**{**settings, "train_steps": 2, "warmup_epochs": 1, "scale": 0.5, **training}),
    )


def without_regularisation(**training: Any) -> Task:
    """Nothing is drawn and nothing added, so that a plain loop can be compared with."""
    own: dict[str, Any] = {"dropout": {}, "weight_dropout": {}, "penalties": (ActivationNorm("alpha", "dropout"),)}
    whole = task(**training)
    fields = {name: getattr(whole, name) for name in ("name", "model", "data", "loss", "metrics", "training")}
    return Task(**fields, **own, space=SearchSpace({"alpha": Uniform(0, 1)}), start={"alpha": 0.0}, recurrent=True)


def test_an_epoch_is_that_of_a_plain_loop_with_a_carried_state() -> None:
    trainer = Trainer(without_regularisation(clip_norm=None), algorithm="fixed")
    plain = Network()
    plain.load_state_dict(trainer.model.network.state_dict())
    seen: list[Batch] = []
    step = trainer.rule.train_step

    def note(batch: Batch) -> Tensor:
        seen.append(batch)
        return step(batch)

    trainer.rule.train_step = note  # type: ignore[method-assign]
    trainer.run_epoch()
    assert len(seen) == 6
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    state = None
    for batch in seen:
        outputs, state = plain(batch.inputs, state)
        state = tuple(part.detach() for part in state)
        optimizer.zero_grad()
        F.cross_entropy(outputs.flatten(0, 1), batch.targets.flatten()).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(trainer.model.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_without_the_carried_state_the_loop_would_be_another() -> None:
    """The test above sees it."""
    trainer = Trainer(without_regularisation(), algorithm="fixed")
    batches = list(trainer.splits.train.batches(4, torch.Generator().manual_seed(0)))
    assert batches[0].carry is not None
    model = trainer.model.eval()
    sample = model.mean_sample()
    first = trainer.forward.outputs(batches[0], sample)
    batches[0].carry.step()
    carried = trainer.forward.outputs(batches[1], sample)
    anew = trainer.forward.outputs(Batch(batches[1].inputs, batches[1].targets), sample)
    assert not torch.allclose(carried, anew, atol=1e-4)
    both, _ = trainer.model(torch.cat([batches[0].inputs, batches[1].inputs], 1), None)
    torch.testing.assert_close(torch.cat([first, carried], 1), both)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_response_step_begins_where_the_base_step_did_and_leaves_nothing(share: float) -> None:
    trainer = Trainer(task(response_share=share), algorithm="delta-stn")
    before: list[tuple[bool, Any]] = []
    left: list[int] = []
    whole_pass = trainer.forward.outputs

    def note(batch: Batch, sample: Any) -> Any:
        assert batch.carry is not None
        state = batch.carry.before(batch.rows)
        outputs = whole_pass(batch, sample)
        if trainer.model.training:
            before.append((sample.linearise, state))
            left.append(len(batch.carry._after))
        return outputs

    trainer.forward.outputs = note  # type: ignore[method-assign]
    trainer.run_epoch()
    assert [linearised for linearised, _ in before[:12]] == [False, True] * 6
    assert set(left) == {1}  # the base step's
    for (_, base), (_, response) in zip(before[2::2], before[3::2], strict=False):
        for whole, part in zip(base, response, strict=True):
            assert part.shape[1] == 4 * share
            assert torch.equal(whole[:, : part.shape[1]], part)
    assert before[0][1] is before[1][1] is None


def test_a_share_of_the_rows_comes_in_unequal_parts() -> None:
    """Three of four rows, in parts of two and one: each has the state of its own rows."""
    trainer = Trainer(task(response_share=0.75, accumulate=2), algorithm="delta-stn")
    trainer.run_epoch()
    assert trainer.diverged is None


def test_hyper_steps_have_a_state_of_their_own() -> None:
    trainer = Trainer(task(warmup_epochs=0, train_steps=1), algorithm="stn")
    seen: list[tuple[bool, Batch]] = []
    whole_pass = trainer.forward.outputs

    def note(batch: Batch, sample: Any) -> Any:
        seen.append((trainer.model.training, batch))
        return whole_pass(batch, sample)

    trainer.forward.outputs = note  # type: ignore[method-assign]
    trainer.run_epoch()
    train = {id(batch.carry) for training, batch in seen[:12] if training}
    hyper = {id(batch.carry) for training, batch in seen[:12] if not training}
    assert len(train) == 1
    assert 1 <= len(hyper) <= 3  # six steps in passes of four
    assert not train & hyper


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parts_of_a_batch_give_the_same_epoch(algorithm: str) -> None:
    """Nothing is drawn, so only the order of additions differs."""
    trainers = [Trainer(without_regularisation(accumulate=n), algorithm="fixed") for n in (1, 2, 3)]
    reports = [trainer.run_epoch() for trainer in trainers]
    for report in reports[1:]:
        assert report["train_loss"] == pytest.approx(reports[0]["train_loss"], rel=1e-4)
        assert report["val_loss"] == pytest.approx(reports[0]["val_loss"], rel=1e-4)
    trainer = Trainer(task(accumulate=3, response_share=0.6), algorithm=algorithm)
    assert trainer.run_epoch()["train_loss"] < 3


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lr_schedule": "NonMonotone", "lr_schedule_args": {"window": 1}}])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resumed_bit_for_bit(
    algorithm: str, settings: dict[str, Any], tmp_path: Path, differences: Differences
) -> None:
    settings = {**settings, "keep_best": True, "patience": 3}
    whole = Trainer(task(**settings), algorithm=algorithm)
    for _ in range(2):
        whole.run_epoch()
    save_state(whole.state_dict(), tmp_path / "state.pt")
    resumed = Trainer(task(**settings), algorithm=algorithm)
    resumed.load_state_dict(load_state(tmp_path / "state.pt"))
    for _ in range(2):
        whole.run_epoch()
        resumed.run_epoch()
    assert differences(whole, resumed) == []


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_learns(algorithm: str) -> None:
    trainer = Trainer(task(lr=2.0, epochs=12), algorithm=algorithm)
    reports = [trainer.run_epoch() for _ in range(12)]
    assert reports[-1]["val_perplexity"] < 0.75 * reports[0]["val_perplexity"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_half_precision_carries_its_state(algorithm: str) -> None:
    """In a fixed run that of torch's own LSTM."""
    report = Trainer(task(precision="bfloat16"), algorithm=algorithm).run_epoch()
    assert report["val_loss"] < 3


def test_a_recurrent_network_that_gives_no_state_is_told_how() -> None:
    class Stateless(Network):
        def forward(self, tokens: Tensor, state: Any = None) -> Any:
            return super().forward(tokens, state)[0]

    whole = task()
    fields = ("name", "data", "space", "start", "loss", "dropout", "weight_dropout", "penalties", "training")
    broken = Task(model=Stateless, recurrent=True, **{name: getattr(whole, name) for name in fields})
    with pytest.raises(TypeError, match=r"gave Tensor: it is called as model\(inputs, state\)"):
        Trainer(broken, algorithm="fixed")
