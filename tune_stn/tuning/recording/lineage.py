"""What the driver sees of a population: which trial went on from whose checkpoint, with which hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

Values = Mapping[str, float]


@dataclass(frozen=True)
class Segment:
    """A stretch of a trial's training, from its start or from a copy of another trial's checkpoint to the next copy.

    Attributes:
        name: "" for the first, then "1", "2", ...
        values: Hyperparameters in the trial's config as it began.
        parent_trial_id: Trial whose checkpoint was copied. Default "": the segment is the trial's first.
        checkpoint: Path of that checkpoint. Default "": the segment is the trial's first.
        sources: Hyperparameter -> "exploit" where the parent had the same value, else "explore". Default empty: nothing
            was copied.
    """

    name: str
    values: Values
    parent_trial_id: str = ""
    checkpoint: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)


class Lineage:
    """Finds copies, for any scheduler that makes them as Ray's population-based training does.

    That gives a paused trial the checkpoint of a better one, which lies in the better one's folder, and a new config.
    Tune has a hook for restoring, but does not call it; what a trial will go on from is to be seen once the scheduler
    has decided and when its process starts.

    Args:
        values: Function of a trial's config that gives its hyperparameters.
    """

    def __init__(self, values: Callable[[Mapping[str, Any]], Values]) -> None:
        self._values = values
        self._segments: dict[str, list[Segment]] = {}
        self._noted: dict[str, tuple[Any, Segment]] = {}
        self._current: dict[str, tuple[Segment, Values]] = {}

    def remember(self, trial_id: str, segment: Segment) -> None:
        """Take note of a segment of an earlier process."""
        known = self._segments.setdefault(trial_id, [])
        if segment.name not in {one.name for one in known}:
            known.append(segment)

    def note(self, trial: Any, trials: Sequence[Any]) -> Segment | None:
        """The segment that begins where the trial will go on from another one's checkpoint; None where it will not.

        To be asked as soon as the copy may have been made: by the time it trains, the parent may have other values.
        """
        parent = _parent(trial, trials)
        if parent is None:
            return None
        noted = self._noted.get(trial.trial_id)
        # Each copy makes an object of its own, which stays the trial's until it saves, however often it fails before.
        if noted is None or noted[0] is not trial.checkpoint:
            noted = trial.checkpoint, self._copied(trial, parent, first=noted is None)
            self._noted[trial.trial_id] = noted
        return noted[1]

    def _copied(self, trial: Any, parent: Any, *, first: bool) -> Segment:
        values, path = self._values(trial.config), str(trial.checkpoint.path)
        known = self._segments.setdefault(trial.trial_id, [Segment("", {})])
        if first:  # in this process: Tune may have brought the trial back as it was after a copy already recorded
            for segment in known:
                if (segment.checkpoint, segment.values) == (path, values):
                    return segment
        theirs = self._values(parent.config)
        sources = {hp: "exploit" if theirs.get(hp) == value else "explore" for hp, value in values.items()}
        known.append(Segment(str(len(known)), values, parent.trial_id, path, sources))
        return known[-1]

    def start(self, trial: Any, trials: Sequence[Any]) -> None:
        """A process begins, or goes on, to train the trial."""
        values = self._values(trial.config)
        segment = self.note(trial, trials)
        if segment is None and trial.trial_id in self._current:
            segment = self._current[trial.trial_id][0]
        if segment is None:
            known = self._segments.setdefault(trial.trial_id, [Segment("", values)])
            # Of a trial that an earlier process began, Tune may have saved a state before its last copy.
            segment = next((one for one in reversed(known) if one.values == values), known[-1])
        self._current[trial.trial_id] = segment, values

    def current(self, trial_id: str) -> tuple[Segment, Values]:
        """The segment that a trial's next report belongs to, and the hyperparameters in its config."""
        return self._current.get(trial_id, (Segment("", {}), {}))


def _parent(trial: Any, trials: Iterable[Any]) -> Any | None:
    """The other trial whose folder holds the checkpoint that this one will go on from, if it is another's."""
    if trial.checkpoint is None:
        return None
    folder = PurePosixPath(trial.checkpoint.path).parent.name
    if folder == trial.relative_logdir:
        return None
    return next((other for other in trials if other.relative_logdir == folder), None)
