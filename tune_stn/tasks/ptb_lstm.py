"""Penn Treebank, in the LSTM language model of the STN paper."""

from __future__ import annotations

from tune_stn.data import ptb
from tune_stn.tasks.arguments import check_sizes
from tune_stn.tasks.language import lstm_language_model, text_splits
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task


def ptb_lstm(
    *,
    hidden: int = 650,
    layers: int = 2,
    window: int = 70,
    train_tokens: int | None = None,
    valid_tokens: int | None = None,
    test_tokens: int | None = None,
    vocabulary: int = 10_000,
    data_dir: str | None = None,
) -> Task:
    """Penn Treebank, two LSTM layers of 650 units, seven hyperparameters: five dropouts, AR and TAR.

    In the settings of the STN authors' code. A size for CPUs: `hidden=128 train_tokens=60000 valid_tokens=20000
    test_tokens=20000 vocabulary=2000 batch_size=20 window=35`. Words that are not among the `vocabulary` most frequent
    ones count as `<unk>`, so perplexities compare only at the same text and vocabulary.
    """
    check_sizes(hidden=hidden, layers=layers, window=window, vocabulary=vocabulary)
    lengths = {"train": train_tokens, "valid": valid_tokens, "test": test_tokens}
    return Task(
        name="ptb-lstm",
        description="Penn Treebank, LSTM",
        data=lambda seed: text_splits(ptb.load(data_dir), lengths, vocabulary, window),
        **lstm_language_model(vocabulary, hidden, layers),
        training=Training(
            epochs=200,
            batch_size=40,
            lr=30.0,
            lr_schedule="NonMonotone",
            lr_schedule_args={"factor": 0.25, "window": 5},
            clip_norm=0.25,
            patience=20,
            eval_batch_size=10,
            hyper_optimizer="Adam",
            train_steps=2,
            warmup_epochs=1,
            scale=1.0,
            tune_scales=False,
            response="full",  # as in the paper
        ),
    )
