"""Which trials start again, and what is said of those that do not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tune_stn.tuning.failures import LINES, Failures, keep_traceback, last_lines

RAISED = 'Failure # 1 (occurred at noon)\nray::train()\n  File "mine.py", line 3, in loss\nKeyError: 1\n'
KILLED = "Failure # 1 (occurred at noon)\nThe actor died unexpectedly before finishing this task.\n\tpid: 7\n"


@pytest.mark.parametrize(("text", "left"), [(RAISED, 0), (KILLED, 2)])
def test_what_was_set_up_starts_again_more_often_but_not_where_it_raises_what_it_raised(
    tmp_path: Path, text: str, left: int
) -> None:
    """As often as Tune finds the failures so far to be at most `max_failures`."""
    (tmp_path / "error.txt").write_text(text)
    trial = SimpleNamespace(trial_id="a", max_failures=1, num_failures=0, error_file=str(tmp_path / "error.txt"))
    trial.last_result = {"training_iteration": 2}
    failures = Failures(3, tmp_path / "errors")
    failures.on_trial_start(0, [], trial)
    assert trial.max_failures == 3
    trial.num_failures = 1
    failures.on_trial_recover(0, [], trial)
    failures.on_trial_start(1, [], trial)
    failures.on_trial_result(1, [], trial, {"training_iteration": 2})  # again, since the checkpoint it went on from
    assert trial.max_failures - trial.num_failures == left
    failures.on_trial_result(1, [], trial, {"training_iteration": 3})
    assert trial.max_failures == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ["the trial's process died"]),
        ("", ["the trial's process died"]),
        ("Failure # 1 (occurred at noon)\n", ["the trial's process died"]),
        ("Failure # 1 (occurred at noon)\n  old\nFailure # 2 (occurred later)\n  in f\n\nKeyError: 1\n",
         ["  in f", "KeyError: 1"]),
        ("\n".join(map(str, range(20))), [str(number) for number in range(20 - LINES, 20)]),
    ],
)  # fmt: skip
def test_the_last_lines_of_the_last_traceback(tmp_path: Path, text: str | None, expected: list[str]) -> None:
    path = tmp_path / "error.txt"
    if text is not None:
        path.write_text(text)
    trial = SimpleNamespace(trial_id="a", error_file=str(path))
    assert last_lines(trial) == expected
    assert last_lines(SimpleNamespace(error_file=None)) == ["the trial's process died"]
    said: list[object] = []
    kept = tmp_path / "run" / "errors" / "a.txt"
    failures = Failures(3, kept.parent, lambda *what: said.append(what))
    keep_traceback(trial, kept.parent)
    failures.on_trial_recover(0, [], trial)
    failures.on_trial_error(0, [], trial)
    assert said == [("a", expected, None if text is None else str(kept), again) for again in (True, False)]
    assert (kept.read_text() if kept.exists() else None) == text
    keep_traceback(SimpleNamespace(trial_id="a", error_file=None), kept.parent)  # its process died, the next time
    assert not kept.exists()


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize(
    ("call", "words", "code"),
    [
        ("save", "OSError: [Errno 28] Error writing. Detail: [errno 28] No space left on device", errno.ENOSPC),
        ("save", "OSError: [Errno 30] Cannot create 'x'. Detail: [errno 30] Read-only file system", errno.EROFS),
        ("save", "KeyError: 1", None),
        ("train", "OSError: [Errno 28] No space left on device: 'of their own'", None),
    ],
)  # fmt: skip
def test_a_run_ends_when_a_checkpoint_cannot_be_saved(
    tmp_path: Path, call: str, words: str, code: int | None, again: bool
) -> None:
    """Other trials could not be saved either, and this one would train its epochs again in vain."""
    path = tmp_path / "error.txt"
    path.write_text(f"Failure # 1 (occurred at noon)\nray::STNTrainable.{call}() (pid=1)\n  File 'x'\n{words}\n")
    trial = SimpleNamespace(trial_id="a", max_failures=3, num_failures=1, error_file=str(path), last_result={})
    said: list[object] = []
    failures = Failures(3, tmp_path / "errors", lambda *what: said.append(what))
    hook = failures.on_trial_recover if again else failures.on_trial_error
    if code is None:
        hook(0, [], trial)
        assert said
        return
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        hook(0, [], trial)
    assert caught.value.errno == code
