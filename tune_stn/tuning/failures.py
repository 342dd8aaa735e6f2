"""What becomes of trials that fail: which of them start again, and what is said of the others."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from tune_stn.files import whole_file
from tune_stn.tuning.ground import disk_error

LINES = 6  # of a traceback, as a person is shown it
_SAVING = ".save()"  # the call of a trial, in the line that Ray begins its traceback with
_HEADING = "Failure # "  # before each traceback in the file that Tune writes for a trial

OnFailure = Callable[[str, Sequence[str], str | None, bool], None]


class Failures(tune.Callback):
    """Says why a trial failed, when it does, and has those that were set up started again more often.

    A process may die for reasons that pass. What is wrong with a task's data or model is so at the next try, too, and
    each try costs a process: with this callback, `tune.run` wants `max_failures=1`. So is an exception of a trial's
    code: after one, the trial is started again, but not once more before it has come further.

    Args:
        restarts: How often a trial that was set up is started again after a failure.
        folder: Where a `Recorder`, which is to come before this callback, keeps the tracebacks.
        on_failure: Called with the trial, the last lines of its traceback, the path of the file that has all of it,
            None where there is no file, and whether the trial is started again. Default None.
    """

    def __init__(self, restarts: int, folder: Path, on_failure: OnFailure | None = None) -> None:
        self.restarts = restarts
        self.folder = folder
        self.on_failure = on_failure
        self._reached: dict[str, int] = {}  # trial -> iterations before an exception that it has not come beyond

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self._reached:
            trial.max_failures = self.restarts

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        if result["training_iteration"] > self._reached.get(trial.trial_id, math.inf):
            del self._reached[trial.trial_id]
            trial.max_failures = self.restarts

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self._say(trial, again=False)

    def on_trial_recover(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        if _raised(trial):
            self._reached[trial.trial_id] = trial.last_result.get("training_iteration", 0)
            trial.max_failures = trial.num_failures  # Tune compares when the next one has been counted
        self._say(trial, again=True)

    def _say(self, trial: Any, *, again: bool) -> None:
        if (code := _unsaved_for(trial)) is not None:
            raise OSError(code, os.strerror(code))
        path = traceback_file(self.folder, trial.trial_id)
        if self.on_failure is not None:
            self.on_failure(trial.trial_id, last_lines(trial), str(path) if path.exists() else None, again)


def traceback_file(folder: Path, trial_id: str) -> Path:
    """Where the traceback of a trial is kept in a folder of tracebacks."""
    return folder / f"{trial_id}.txt"


def keep_traceback(trial: Any, folder: Path) -> Path | None:
    """A copy of what Tune has written of a trial's failures, if it has, in a folder that is made for it.

    Tune's own lies in the folder of a Ray session, which does not last.
    """
    path = traceback_file(folder, trial.trial_id)
    path.unlink(missing_ok=True)  # of an earlier failure
    if not trial.error_file or not Path(trial.error_file).exists():
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        shutil.copyfile(trial.error_file, temporary)
    return path


def last_lines(trial: Any) -> list[str]:
    """The end of the last traceback of a trial, or that its process died; indentation is kept, empty lines are not."""
    return _last_failure(trial)[-LINES:] or ["the trial's process died"]


def _raised(trial: Any) -> bool:
    """Whether its last failure was an exception of code that the trial ran, not the end of its process."""
    return any(line.lstrip().startswith('File "') for line in _last_failure(trial))


def _unsaved_for(trial: Any) -> int | None:
    """The code of the disk's error for which its last checkpoint could not be saved; None where it failed otherwise.

    Neither would those of other trials be, nor its own after the same epochs once more.
    """
    lines = _last_failure(trial)
    saving = any(_SAVING in line for line in lines)
    return disk_error("\n".join(lines[-LINES:])) if saving else None


def _last_failure(trial: Any) -> list[str]:
    """What Tune wrote of it, on the driver's disk, without empty lines."""
    path = trial.error_file
    if not path or not Path(path).exists():
        return []
    lines = [line.rstrip() for line in Path(path).read_text(errors="replace").splitlines() if line.strip()]
    begins = max((number for number, line in enumerate(lines) if line.startswith(_HEADING)), default=-1)
    return lines[begins + 1 :]
