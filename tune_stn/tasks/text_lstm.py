"""Paradise Lost, in a small LSTM language model: language on a fresh machine."""

from __future__ import annotations

from tune_stn.data import paradise_lost
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.language import lstm_language_model, text_splits
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task


def text_lstm(
    *,
    hidden: int = 128,
    layers: int = 2,
    window: int = 35,
    train_tokens: int | None = None,
    valid_tokens: int | None = None,
    test_tokens: int | None = None,
    vocabulary: int = 2000,
) -> Task:
    """Paradise Lost (inside the package), two LSTM layers of 128 units, the seven hyperparameters of ptb-lstm.

    Eight books to train on, the ninth for validation, the tenth for testing.
    """
    check_sizes(hidden=hidden, layers=layers, window=window, vocabulary=vocabulary)
    lengths = {"train": train_tokens, "valid": valid_tokens, "test": test_tokens}
    return Task(
        name="text-lstm",
        description="Paradise Lost, LSTM",
        data=lambda seed: text_splits(paradise_lost.load(), lengths, vocabulary, window),
        **lstm_language_model(vocabulary, hidden, layers),
        training=Training(
            epochs=30,
            batch_size=20,
            lr=10.0,
            lr_schedule="NonMonotone",
            clip_norm=0.25,
            eval_batch_size=20,
            hyper_optimizer="Adam",
            train_steps=2,
            warmup_epochs=1,
            scale=1.0,
            tune_scales=False,
            response="full",  # as in the paper
        ),
    )
