"""The language tasks: loss, network, hyperparameters, and the settings of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tune_stn.data.text import Text
from tune_stn.nn import self_tuning
from tune_stn.space import Sample
from tune_stn.tasks import get_task
from tune_stn.tasks.language import PERPLEXITY, LanguageLSTM, encoded, token_loss
from tune_stn.tasks.text_transformer import LanguageTransformer
from tune_stn.training import Trainer

SMALL: dict[str, dict[str, Any]] = {
    "text-lstm": {"hidden": 6},
    "text-transformer": {
        "width": 8,
        "heads": 2,
        "layers": 2,
    },
}
for settings in SMALL.values():
    settings |= {"vocabulary": 40, "train_tokens": 900, "valid_tokens": 900, "test_tokens": 200, "window": 8}
    settings |= {"batch_size": 5}


# Loss ----------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_over_the_tokens_that_count() -> None:
    outputs, targets = torch.randn(3, 4, 7), torch.randint(7, (3, 4))
    targets[1, 2:] = -100
    each = [
        -outputs[row, time].log_softmax(-1)[targets[row, time]]
        for row in range(3)
        for time in range(4)
        if targets[row, time] >= 0
    ]
    torch.testing.assert_close(token_loss(outputs, targets), torch.stack(each).mean())


def test_loss_takes_probabilities() -> None:
    outputs, targets = torch.randn(3, 4, 7), torch.randint(7, (3, 4))
    torch.testing.assert_close(token_loss(outputs, F.one_hot(targets, 7).float()), token_loss(outputs, targets))


def test_perplexity_of_a_diverging_run_is_infinite() -> None:
    assert PERPLEXITY.function(0.0) == 1.0
    assert PERPLEXITY.function(1e4) == float("inf")


# Networks ------------------------------------------------------------------------------------------------------------


def test_the_state_carries_on_where_it_was_left() -> None:
    network = LanguageLSTM(11, 6, 2).eval()
    tokens = torch.randint(11, (3, 8))
    whole, _ = network(tokens)
    first, state = network(tokens[:, :3])
    second, _ = network(tokens[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert len(state) == 2


def test_the_decoder_shares_the_embedding() -> None:
    for network in (LanguageLSTM(11, 6, 2), LanguageTransformer(11, 8, 2, 1, 5)):
        assert network.decoder.weight is network.embedding.weight


def test_no_token_looks_ahead() -> None:
    network = LanguageTransformer(11, 8, 2, 2, 6).eval()
    tokens = torch.randint(11, (2, 6))
    changed = tokens.clone()
    changed[:, 4] = (tokens[:, 4] + 1) % 11
    before, after = network(tokens), network(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


# Hyperparameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_every_hyperparameter_changes_the_training_loss(name: str) -> None:
    trainer = Trainer(get_task(name, **SMALL[name]), algorithm="fixed")
    batch = next(trainer.splits.train.batches(5, torch.Generator().manual_seed(0)))
    for parameter in trainer.stepper.parameters("base"):  # or its dropouts would hardly show
        torch.nn.init.normal_(parameter, std=0.5)

    def loss(values: dict[str, float]) -> float:
        torch.manual_seed(0)
        return float(
            trainer.rule.training_loss(batch, Sample({n: torch.tensor([v]) for n, v in values.items()})).detach()
        )

    start = dict(trainer.task.start)
    plain = loss(start)
    assert loss(start) == plain
    for hp in start:
        assert loss({**start, hp: 0.4}) != pytest.approx(plain, abs=1e-5), hp


def test_words_are_dropped_whole_and_once_a_batch() -> None:
    task = get_task("text-lstm", **SMALL["text-lstm"])
    model = self_tuning(
        task.model(), task.space, start=task.start, dropout=task.dropout, weight_dropout=task.weight_dropout
    )
    values = {name: torch.tensor([0.5 if name == "dropout_embedding" else 0.0]) for name in task.space}
    tokens = torch.arange(40).repeat(2, 1)
    with model.using(Sample(values)):
        embedded = model.network.embedding(tokens)
    dropped = embedded.eq(0).all(-1)
    assert torch.equal(dropped[0], dropped[1])
    assert 5 < int(dropped[0].sum()) < 35


# Settings ------------------------------------------------------------------------------------------------------------


def test_ptb_is_in_the_settings_of_the_authors_code() -> None:
    task = get_task("ptb-lstm")
    network = task.model()
    assert isinstance(network, LanguageLSTM)
    assert tuple(network.embedding.weight.shape) == (10_000, 650)
    assert [(layer.input_size, layer.hidden_size) for layer in network.layers] == [(650, 650)] * 2
    training = task.training
    assert (training.optimizer, training.lr, training.clip_norm, training.batch_size) == ("SGD", 30.0, 0.25, 40)
    assert (training.hyper_optimizer, training.step_size(200 * 168 // 2)) == ("Adam", 0.01)  # a run of that length
    assert (training.train_steps, training.valid_steps, training.warmup_epochs) == (2, 1, 1)
    assert (training.scale, training.tune_scales, training.response) == (1.0, False, "full")
    assert (training.lr_schedule, dict(training.lr_schedule_args)) == ("NonMonotone", {"factor": 0.25, "window": 5})
    assert training.patience == 20
    assert set(task.start.values()) == {0.05}
    assert len(task.space) == 7
    # Its warm-up is 331 batches, one epoch.
    assert Text(torch.zeros(929_589, dtype=torch.int64), 70).steps(40) == 331


def test_a_part_of_the_text_has_its_own_vocabulary() -> None:
    words = {"train": ["a", "b", "a", "c"], "valid": ["c", "z"], "test": ["a", "a", "b"]}
    tokens = encoded(words, {"train": 3, "valid": None, "test": 2}, 10)
    assert {split: part.tolist() for split, part in tokens.items()} == {
        "train": [2, 3, 2],
        "valid": [1, 1],
        "test": [2, 2],
    }
    assert encoded(words, {"train": None}, 3)["train"].tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_more_tokens_than_there_are_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"train_tokens={tokens}: accepted is 2 to 4"):
        encoded({"train": ["a"] * 4}, {"train": tokens}, 10)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
@pytest.mark.parametrize("name", SMALL)
def test_a_small_one_trains(name: str, algorithm: str) -> None:
    settings = {"warmup_epochs": 0, "eval_batch_size": 200}
    trainer = Trainer(get_task(name, **SMALL[name], **settings), algorithm=algorithm)
    first, second = (trainer.run_epoch() for _ in range(2))
    assert second["val_loss"] < first["val_loss"]
    assert second["val_perplexity"] == pytest.approx(torch.tensor(second["val_loss"]).exp().item(), rel=1e-5)
