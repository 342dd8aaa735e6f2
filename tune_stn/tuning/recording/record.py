"""The record of a run: its directory, the journal there, and what has been counted from it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_stn.tuning.recording import journal
from tune_stn.tuning.recording.journal import EVENT, FAILED, FINISHED, REPORTS
from tune_stn.tuning.recording.ledger import ENDED, Ledger, known_lines
from tune_stn.tuning.recording.lines import end_event
from tune_stn.tuning.recording.result_reader import ResultReader

logger = logging.getLogger(__name__)


class Record:
    """A journal that is read once, when it is opened, and counted line by line from then on.

    Args:
        directory: Directory of the run alone.
        reader: How the trainable's results and config are read.
        cost_total: Cost spent before the run for its sake, in the unit of `cost`.
        wall_time_s: Seconds spent before the run for its sake.

    Attributes:
        directory: The directory. `restore` may change it.
        ledger: What has been counted; None until `open` is called.
    """

    def __init__(self, directory: Path, reader: ResultReader, *, cost_total: float, wall_time_s: float) -> None:
        self.directory = directory
        self.ledger: Ledger | None = None
        self._reader = reader
        self._before = {"cost_total": cost_total, "wall_time_s": wall_time_s}
        self._lines: list[dict[str, Any]] | None = None  # as read, until one is added

    @property
    def path(self) -> Path:
        """The journal."""
        return self.directory / REPORTS

    def open(self) -> None:
        """Make the directory, and count what an earlier process recorded in it.

        Raises:
            ValueError: The directory cannot be made, or its journal is damaged.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"Recorder({str(self.directory)!r}): the directory cannot be made ({error.strerror}); give another"
            raise ValueError(text) from None
        journal.cut_torn_end(self.path)
        self._lines = list(journal.read_lines(self.path))
        self.ledger = self._count(self._lines)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, and count it; the record is open."""
        assert self.ledger is not None
        self._lines = None
        journal.append(self.path, line)
        self.ledger.take(line)

    def keep(self, known: Mapping[str, str], *, overwrite: bool) -> None:
        """Forget trials that Tune had not saved when its process died, and the end of trials that go on after all.

        Args:
            known: Trial -> Tune's word for its status.
            overwrite: Whether the record of another run may be replaced.

        Raises:
            ValueError: Tune knows none of the trials, and `overwrite` is False.
        """
        lines, self._lines = self._lines, None
        if lines is None:  # another run of the same process has added to them
            lines = list(journal.read_lines(self.path))
        if lines and not overwrite and all(line["trial_id"] not in known for line in lines):
            advice = "take another directory, or overwrite=True; to go on with that run, use Tuner.restore"
            advice += " (if you did, Ray Tune's message above says why it could not, and has begun a new one)"
            raise ValueError(f"{self.directory} holds the record of another run: {advice}")
        kept = known_lines(lines, known, cost_before=self._before["cost_total"])
        if len(kept) == len(lines):
            return
        if not kept:
            text = "%s: Ray Tune has no saved state to go on with, so the run begins anew; reports dropped: %d"
            logger.warning(text, self.directory, sum(EVENT not in line for line in lines))
        journal.replace(self.path, kept)
        self.ledger = self._count(kept)

    def restore(self, saved: Mapping[str, Any], experiment: Path, trials: Sequence[Any]) -> None:
        """Go on where Tune has restored the run, maybe moved or on another machine.

        Args:
            saved: What the recorder had Tune save: `directory`, `experiment`, and the `latest` report of each trial.
            experiment: The experiment's folder now.
            trials: The trials, as Tune has them.
        """
        given = self.directory
        wanted = _moved(given, before=Path(saved["experiment"]), now=experiment)
        self.directory = _possible(wanted, otherwise=experiment)
        if self.directory == given and (self.path.exists() or not saved["latest"]):
            return
        if self.path.exists():
            text = "the experiment has moved, and its record with it: it goes on in %s, not in %s"
        else:
            text = (
                "the record of the run that goes on is missing: %s begins with each trial's newest report (it was %s)"
            )
            self.directory.mkdir(parents=True, exist_ok=True)
            ends = [
                end_event(trial, FAILED if trial.status == "ERROR" else FINISHED)
                for trial in trials
                if trial.status in ENDED
            ]
            journal.replace(self.path, [*saved["latest"], *ends])
        logger.warning(text, self.directory, given)
        self.ledger = self._lines = None

    def _count(self, lines: Iterable[Mapping[str, Any]]) -> Ledger:
        return Ledger(lines, self._reader, **self._before)


def _moved(directory: Path, *, before: Path, now: Path) -> Path:
    """A directory's place after a move of the experiment's folder, along with which it went if it lay in there."""
    inside = before.resolve()
    return now.resolve() / directory.relative_to(inside) if directory.is_relative_to(inside) else directory


def _possible(directory: Path, *, otherwise: Path) -> Path:
    """The directory if it can be made, else one of its name in the experiment's folder, or in the current one.

    Args:
        directory: Wanted directory, which this makes where it can.
        otherwise: The experiment's folder; if that is not on this machine, the current directory takes its place.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return (otherwise if otherwise.is_dir() else Path.cwd()).resolve() / directory.name
    return directory
