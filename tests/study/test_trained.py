"""What is said of a model that is not that of its trial's best epoch."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from tune_stn.study.results import load_results
from tune_stn.study.trained import _load_best, best_of

pytestmark = pytest.mark.ray


def test_a_checkpoint_that_is_older_than_the_best_epoch_says_so(tuned: Path) -> None:
    best = best_of(load_results(tuned), None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _load_best(best, tuned, None)
    reported = replace(best, metrics={**best.metrics, "val_loss": best.metrics["val_loss"] - 0.5})
    with pytest.warns(UserWarning, match=rf"{best.trial_id} of stn, was made before its best epoch: this model had"):
        _load_best(reported, tuned, None)
