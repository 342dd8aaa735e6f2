"""What becomes of trials that fail: which of them start again, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune

LINES = 6  # of a traceback, as a person is shown it
_HEADING = "Failure # "  # before each traceback in the file that Tune writes for a trial

OnFailure = Callable[[str, Sequence[str], str | None], None]


class Failures(tune.Callback):
    """Says why a trial failed for good, when it does, and has those that were set up started again more often.

    A process may die for reasons that pass. What is wrong with a task's data or model is so at the next try, too, and
    each try costs a process: with this callback, `tune.run` wants `max_failures=1`.

    Args:
        restarts: How often a trial that was set up is started again after a failure.
        on_failure: Called with the trial, the last lines of its traceback, and the path of the file that has all of it,
            on this machine; None where there is no file. Default None.
    """

    def __init__(self, restarts: int, on_failure: OnFailure | None = None) -> None:
        self.restarts = restarts
        self.on_failure = on_failure

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        trial.max_failures = self.restarts

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        if self.on_failure is not None:
            self.on_failure(trial.trial_id, last_lines(trial), trial.error_file)


def last_lines(trial: Any) -> list[str]:
    """The end of the last traceback of a trial, or that its process died; indentation is kept, empty lines are not."""
    path = trial.error_file
    if path and Path(path).exists():
        lines = [line.rstrip() for line in Path(path).read_text().splitlines() if line.strip()]
        begins = max((number for number, line in enumerate(lines) if line.startswith(_HEADING)), default=-1)
        if lines[begins + 1 :]:
            return lines[begins + 1 :][-LINES:]
    return ["the trial's process died"]
