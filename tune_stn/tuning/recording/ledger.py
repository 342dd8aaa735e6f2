"""What a run has reported and spent so far, counted from the lines of its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tune_stn.tuning.recording.journal import COPIED, EVENT, FAILED, FINISHED, RESTARTED, STARTUP, TOOK
from tune_stn.tuning.recording.lineage import Lineage, Segment
from tune_stn.tuning.recording.result_reader import ResultReader

ENDED = ("TERMINATED", "ERROR")  # Tune's words for a trial's status
Place = tuple[str, str, int]
"""Trial, segment and epoch: what names a report."""


class Ledger:
    """The counts after some lines, and the place of the next report.

    Args:
        lines: Lines of a journal.
        reader: How the trainable's results and config are read.
        cost_total: Cost spent before the first line, in the unit of `cost`.
        wall_time_s: Time spent before the first line, in seconds.

    Attributes:
        cost_total: Cost spent by all trials, and before them, in the unit of `cost`.
        wall_time_s: Time of the newest line, in seconds.
        busy_s: Time that trials took for their reports, in seconds, as far as it was noted.
        startup_s: Time from the start of Tune to its first trial, in seconds, of all processes together.
        failures: Trial -> why it failed for good.
        restarts: Events of failures after which a trial was started again.
        losses: Place -> validation loss of the newest report there.
        latest: Trial -> its newest report that repeats no other.
        copies: (trial, segment) of those that began with another trial's checkpoint.
        lineage: Segments of the trials' training.
    """

    def __init__(
        self,
        lines: Iterable[Mapping[str, Any]],
        reader: ResultReader,
        *,
        cost_total: float = 0.0,
        wall_time_s: float = 0.0,
    ) -> None:
        self.cost_total = cost_total
        self.wall_time_s = wall_time_s
        self.busy_s = self.startup_s = 0.0
        self.failures: dict[str, str] = {}
        self.restarts: list[Mapping[str, Any]] = []
        self.losses: dict[Place, float] = {}
        self.latest: dict[str, Mapping[str, Any]] = {}
        self.copies: set[tuple[str, str]] = set()
        self.lineage = Lineage(reader.hyperparameters)
        self._offsets: dict[tuple[str, str], int] = {}
        for line in lines:
            self.take(line)

    def take(self, line: Mapping[str, Any]) -> None:
        """Count a line."""
        trial_id, event = line["trial_id"], line.get(EVENT)
        if event is None:
            self._take_report(line)
        elif event == FAILED:
            self.failures[trial_id] = line["reason"]
        elif event == RESTARTED:
            self.restarts.append(line)
        elif event == COPIED:
            self.copies.add((trial_id, line["segment"]))
            copied = (line[name] for name in ("values", "parent_trial_id", "checkpoint", "sources"))
            self.lineage.remember(trial_id, Segment(line["segment"], *copied))

    def _take_report(self, line: Mapping[str, Any]) -> None:
        trial_id, segment, epoch = place = place_of(line)
        if trial_id not in self.latest:
            values = {name.removeprefix("hp/"): line[name] for name in line if name.startswith("hp/")}
            self.lineage.remember(trial_id, Segment("", values))
        if place not in self.losses:
            self.latest[trial_id] = line
            self.cost_total = line["cost_total"]
        if "training_iteration" in line:
            self._offsets[trial_id, segment] = epoch - line["training_iteration"]
        self.losses[place] = line["val_loss"]
        self.wall_time_s = max(self.wall_time_s, line["wall_time_s"])
        self.busy_s += line.get(TOOK, 0.0)
        self.startup_s += line.get(STARTUP, 0.0)

    def place(self, trial_id: str, iteration: int) -> Place:
        """The place of the next report by Tune's count of a trial's reports, which a copy or failure sets back."""
        segment = self.lineage.current(trial_id)[0].name
        epochs = self.latest[trial_id]["epoch"] if trial_id in self.latest else 0
        return trial_id, segment, iteration + self._offsets.get((trial_id, segment), epochs + 1 - iteration)


def place_of(line: Mapping[str, Any]) -> Place:
    """The place of a recorded report."""
    return line["trial_id"], line["segment"], line["epoch"]


def known_lines(
    lines: Iterable[dict[str, Any]], known: Mapping[str, str], *, cost_before: float
) -> list[dict[str, Any]]:
    """The lines of trials that Tune knows, without the end of trials that go on after all, and with totals anew.

    Args:
        lines: Lines of a journal.
        known: Trial -> Tune's word for its status.
        cost_before: Cost spent before the first line.
    """
    kept = [
        line
        for line in lines
        if known.get(line["trial_id"]) in ENDED
        or (line["trial_id"] in known and line.get(EVENT) not in (FAILED, FINISHED))
    ]
    spent: dict[str, float] = {}
    total = cost_before
    for number, line in enumerate(kept):
        if EVENT not in line:
            total += line["cost"] - spent.get(line["trial_id"], 0.0)
            spent[line["trial_id"]] = line["cost"]
            kept[number] = {**line, "cost_total": total}
    return kept
