"""What code of the user's raises is theirs, and said to be."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

_NOT_THEIRS = {"tune_stn", "torch", "numpy", "pandas", "sklearn", *sys.stdlib_module_names}


class OwnCodeError(ValueError):
    """Code that a task brings along raised an exception, which is the cause of this one; the message says which code.

    Args:
        what: The part of the task that raised it.
        cause: The exception.

    Attributes:
        trace: The traceback of the cause, from the first frame of the user's on; empty if it has no such frame.
    """

    def __init__(self, what: str, cause: BaseException) -> None:
        super().__init__(f"{what} raised {type(cause).__name__}: {' '.join(str(cause).split())}")
        frames = cause.__traceback__
        while frames is not None and not _is_theirs(frames):
            frames = frames.tb_next
        known = frames is not None or isinstance(cause, SyntaxError)  # which says itself where it is
        self.trace = "".join(traceback.format_exception(type(cause), cause, frames)) if known else ""


@contextmanager
def own_code(part: str, task: str, detail: Callable[[], str] = str) -> Iterator[None]:
    """Say of an exception that is raised inside the block which part of which task raised it.

    Args:
        part: What of the task is called inside.
        task: The name of the task.
        detail: A function that says more of it, afterwards. Default that there is nothing more to say.

    Raises:
        OwnCodeError: Code of the user's, or a library that it calls, raised an exception.
        ValueError: This package refused something inside.
    """
    try:
        yield
    except OwnCodeError:
        raise
    except (Exception, SystemExit) as error:  # a script may end itself, of its options say, which are not its own here
        what = f"{part} of task {task!r}{detail()}"
        if not is_refusal(error):
            raise OwnCodeError(what, error) from error
        if isinstance(error, ValueError) and f"task {task!r}" not in str(error):
            raise ValueError(f"{what}: {error}") from error
        raise


def is_refusal(error: BaseException) -> bool:
    """Whether this package's checks raised it, for the user to read, where anything else is a defect."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        isinstance(error, (ValueError, OSError))
        and trace is not None
        and trace.tb_frame.f_globals.get("__name__", "").startswith("tune_stn.")
    )


def _is_theirs(frame: TracebackType) -> bool:
    name = frame.tb_frame.f_globals.get("__name__", "")
    return name.partition(".")[0] not in _NOT_THEIRS
