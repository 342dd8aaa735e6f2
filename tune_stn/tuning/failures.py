"""What becomes of trials that fail: which of them start again, and what is said of the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune

LINES = 6  # of a traceback, as a person is shown it
_HEADING = "Failure # "  # before each traceback in the file that Tune writes for a trial

OnFailure = Callable[[str, Sequence[str], str | None, bool], None]


class Failures(tune.Callback):
    """Says why a trial failed, when it does, and has those that were set up started again more often.

    A process may die for reasons that pass. What is wrong with a task's data or model is so at the next try, too, and
    each try costs a process: with this callback, `tune.run` wants `max_failures=1`.

    Args:
        restarts: How often a trial that was set up is started again after a failure.
        folder: Where the tracebacks are kept, a file for each trial; made when there is one. Tune's own files lie in
            the folder of a Ray session, which does not last.
        on_failure: Called with the trial, the last lines of its traceback, the path of the file that has all of it,
            None where there is no file, and whether the trial is started again. Default None.
    """

    def __init__(self, restarts: int, folder: Path, on_failure: OnFailure | None = None) -> None:
        self.restarts = restarts
        self.folder = folder
        self.on_failure = on_failure

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        trial.max_failures = self.restarts

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self._say(trial, again=False)

    def on_trial_recover(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self._say(trial, again=True)

    def _say(self, trial: Any, *, again: bool) -> None:
        path = self._kept(trial)
        if self.on_failure is not None:
            self.on_failure(trial.trial_id, last_lines(trial), str(path) if path is not None else None, again)

    def _kept(self, trial: Any) -> Path | None:
        """A copy of the file of a trial's traceback, if there is one."""
        path = traceback_file(self.folder, trial.trial_id)
        path.unlink(missing_ok=True)  # of an earlier failure
        if not trial.error_file or not Path(trial.error_file).exists():
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trial.error_file, path)
        return path


def traceback_file(folder: Path, trial_id: str) -> Path:
    """Where the traceback of a trial is kept in a folder of tracebacks."""
    return folder / f"{trial_id}.txt"


def last_lines(trial: Any) -> list[str]:
    """The end of the last traceback of a trial, or that its process died; indentation is kept, empty lines are not."""
    path = trial.error_file
    if path and Path(path).exists():
        lines = [line.rstrip() for line in Path(path).read_text().splitlines() if line.strip()]
        begins = max((number for number, line in enumerate(lines) if line.startswith(_HEADING)), default=-1)
        if lines[begins + 1 :]:
            return lines[begins + 1 :][-LINES:]
    return ["the trial's process died"]
