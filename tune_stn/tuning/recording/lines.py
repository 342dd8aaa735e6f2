"""From what Tune tells of a trial to a line of the journal.

Here alone it matters whose trainable reports. `STNTrainable` says with each result where in its training it is, from
which trial it copied, what it has spent since, and whether it has ended. For any other trainable this is found out
here, so that whatever reads the journal knows one form.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_stn.training.tables import CHOICE
from tune_stn.tuning.failures import keep_traceback, last_lines
from tune_stn.tuning.recording.journal import COPIED, ERRORS, EVENT, FAILED
from tune_stn.tuning.recording.ledger import Ledger, Place
from tune_stn.tuning.recording.lineage import Segment
from tune_stn.tuning.recording.result_reader import (
    INCREMENTS,
    REPORTED,
    ResultReader,
    describes_itself,
    reported_numbers,
    result_numbers,
    under_free_names,
)

logger = logging.getLogger(__name__)


class Lines:
    """Makes the lines of one run.

    Args:
        reader: How the trainable's results and config are read.
    """

    def __init__(self, reader: ResultReader) -> None:
        self.reader = reader
        self._choices: dict[str, dict[str, str]] = {}
        self._renamed: set[str] = set()

    def start(self, trial: Any) -> None:
        """A process begins, or goes on, to train the trial."""
        self._choices[trial.trial_id] = self.reader.choices(trial.config)

    def place(self, trial_id: str, result: Mapping[str, Any], ledger: Ledger) -> Place:
        """The place of a result: where the trainable says, else by Tune's count."""
        if describes_itself(result):
            return trial_id, result["segment"], result["epoch"]
        return ledger.place(trial_id, result.get("training_iteration", 0))

    def report(self, trial: Any, result: Mapping[str, Any], ledger: Ledger, *, wall_time_s: float) -> dict[str, Any]:
        """The line of a result; a repetition adds nothing to what has been spent.

        Args:
            trial: The trial, as Tune has it.
            result: The result that Tune got from it.
            ledger: What the run has reported and spent before.
            wall_time_s: Seconds since the run's first trial was started.
        """
        found = result_numbers(result)
        place = trial_id, segment, epoch = self.place(trial.trial_id, result, ledger)
        own, values = ledger.lineage.current(trial_id)
        knows = describes_itself(result)
        if knows:
            described = {name: result[name] for name in ("parent_trial_id", "status", "reason")}
        else:
            described = {"parent_trial_id": own.parent_trial_id, "status": "running"}
            described["training_iteration"] = result["training_iteration"]
        spent = {column: ledger.latest.get(trial_id, {}).get(column, 0.0) for column in INCREMENTS}
        cost_total = ledger.cost_total
        if place not in ledger.losses:
            says = all(key in found for key in INCREMENTS.values())  # what it adds, so nothing need be subtracted
            before = {} if says else result_numbers(trial.last_result)
            added = {column: self.reader.increment(column, found, before) for column in INCREMENTS}
            spent = {column: spent[column] + added[column] for column in INCREMENTS}
            cost_total += added["cost"]
        if not ledger.latest:
            self._say_what_is_missing(trial.config, result, found)
        columns = {
            **{"trial_id": trial_id, "segment": segment, **described},
            **self.reader.hp_columns(found, values),
            **{CHOICE + name: text for name, text in self._choices.get(trial_id, {}).items()},
            **self.reader.losses(found),
            **{"epoch": epoch, "step": self.reader.step(found, epoch), **spent, "cost_total": cost_total},
            "wall_time_s": wall_time_s,
        }
        # The counts of a trainable that describes itself are those of the tables, but for what a copy brought along.
        about = {name: number for name, number in found.items() if not (knows and name in INCREMENTS)}
        reported, taken = under_free_names(reported_numbers(about, describes_itself=knows), columns)
        if new := [name for name in taken if name not in self._renamed]:
            self._renamed.update(new)
            text = "the tables have columns named %s of their own, so what trials report by such a name is in %s<name>"
            logger.warning(text, ", ".join(new), REPORTED)
        return {**reported, **columns}

    def copy(self, trial: Any, line: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
        """The event of the copy of another trial's checkpoint after which `line` is the first report."""
        segment, epoch = ledger.lineage.current(trial.trial_id)[0], line["epoch"] - 1
        if segment.parent_trial_id != line["parent_trial_id"]:
            segment = Segment("", {})  # the trainable has copied by a way of its own
        return {
            EVENT: COPIED,
            **{name: line[name] for name in ("trial_id", "segment", "parent_trial_id")},
            **{"epoch": epoch, "step": self.reader.step(result_numbers(trial.last_result), epoch)},
            **{"checkpoint": segment.checkpoint, "values": segment.values, "sources": segment.sources},
        }

    def _say_what_is_missing(
        self, config: Mapping[str, Any], result: Mapping[str, Any], found: Mapping[str, float]
    ) -> None:
        if (metric := self.reader.metric) not in found:
            given = f" (it is a {type(result[metric]).__name__})" if metric in result else ""
            text = "the first report has no number %r%s, so no val_loss; name what it has by Recorder(metric=): %s"
            logger.warning(text, metric, given, ", ".join(reported_numbers(found)) or "no number at all")
        if unknown := self.reader.unknown(config, found):
            text = "Recorder(hps=): %s is not in the config of the first trial that reports, which has %s"
            everything = ResultReader()
            known = {**everything.hyperparameters(config), **everything.choices(config)}
            logger.warning(text, ", ".join(unknown), ", ".join(known) or "none")


def failure_event(trial: Any, event: str, ledger: Ledger, directory: Path) -> dict[str, Any]:
    """The event of a trial's failure. Keeps its traceback in `directory`: Tune deletes the folder that holds its own.

    Args:
        trial: The trial, as Tune has it.
        event: `FAILED`, or `RESTARTED` where Tune starts the trial again.
        ledger: What the run has reported before.
        directory: Directory of the recorder.
    """
    lines = last_lines(trial)
    epoch = ledger.latest[trial.trial_id]["epoch"] if trial.trial_id in ledger.latest else 0
    kept = keep_traceback(trial, directory / ERRORS)
    line = {"trial_id": trial.trial_id, "reason": lines[-1].strip(), "lines": lines, "epoch": epoch}
    same = sum(all(line[name] == one[name] for name in ("trial_id", "lines", "epoch")) for one in ledger.restarts)
    if event == FAILED and same:
        where = f"in epoch {epoch + 1}" if epoch else "before its first report"
        line["reason"] += f" ({same + 1} times {where}: it is not started again)"
    return {EVENT: event, **line, "file": f"{ERRORS}/{kept.name}" if kept is not None else None}


def end_event(trial: Any, event: str) -> dict[str, Any]:
    """The event of a trial's end."""
    reason = {"reason": last_lines(trial)[-1].strip()} if event == FAILED else {}
    return {EVENT: event, "trial_id": trial.trial_id, **reason}
