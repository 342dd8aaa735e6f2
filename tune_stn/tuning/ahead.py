"""The process of the next trial starts while others train: a local Ray keeps it until a trial takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray import tune


def start_ahead() -> None:
    """Have a worker that imports what a trial needs, unless there is an idle one that has. Waits for nothing."""
    ray.remote(num_cpus=0, max_retries=0)(_imports).remote()


def _imports() -> None:
    import tune_stn.tuning.trainable  # noqa: F401


class Ahead(tune.Callback):
    """Starts a process ahead whenever a trial has begun and may not be the last.

    Args:
        samples: trials at most.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        if len(trials) < self.samples:
            start_ahead()
