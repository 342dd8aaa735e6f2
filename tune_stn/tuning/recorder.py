"""A Tune callback that keeps every report of a run, and the budget that is counted from them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

# A run in which nearly every trial fails would never spend its budget: it is given up after this many failures
# without a success in between.
FAILURES_IN_A_ROW = 3
FINISHED = ("TERMINATED", "ERROR")  # Tune's words for a trial's status

OnReport = Callable[[Mapping[str, Any], float], None]


class Recorder(tune.Callback):
    """Appends each report to a file of JSON lines, and adds up what the run has spent.

    A trial that goes on from a checkpoint after a failure repeats the epochs since. Such a repetition is known by its
    trial, segment and epoch, is equal to the first report bit for bit, and is neither kept nor charged again. The
    file is read back at construction, so a run continued after a crash of the driver goes on counting where it was;
    the reports of trials that Tune had not saved by then, and so knows nothing of, are dropped.
    `cost` and `device_time_s` are kept as what the trial itself has spent: a copy of another trial's checkpoint brings
    that one's counts with it, and they are charged already.

    Args:
        path: the file; lines hold the report with `wall_time_s` and `cost_total`.
        on_report: called with each new report and the running total of cost.

    Attributes:
        cost_total: spent by all trials.
        failures: trial -> why it failed for good.
        unsaved: trials that have reported more than their newest checkpoint holds.
    """

    def __init__(self, path: Path, on_report: OnReport | None = None) -> None:
        self.path = path
        self.on_report = on_report
        self.cost_total = 0.0
        self.failures: dict[str, str] = {}
        self.failures_in_a_row = 0
        self.unsaved: set[str] = set()
        self._seen: set[tuple[str, str, int]] = set()
        self._latest: dict[str, dict[str, Any]] = {}
        self._wall_before = 0.0
        self._continued = path.exists()
        self._count(read_reports(path))
        self._began = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._continued:  # the first step, and Tune has brought its trials back, but made no new ones yet
            self._continued = False
            self._drop_unknown({trial.trial_id for trial in trials})
            self.unsaved = {t.trial_id for t in trials if t.trial_id in self._latest and t.status not in FINISHED}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        key = _key(trial.trial_id, result)
        if key in self._seen:
            return
        self._seen.add(key)
        self.failures_in_a_row = 0
        self.cost_total += result["cost_increment"]
        before = self._latest.get(trial.trial_id, {"cost": 0.0, "device_time_s": 0.0})
        kept = {name: value for name, value in result.items() if name not in _TUNES_OWN and name not in _INCREMENTS}
        line = kept | {
            "trial_id": trial.trial_id,
            "cost": before["cost"] + result["cost_increment"],
            "cost_total": self.cost_total,
            "device_time_s": before["device_time_s"] + result["device_time_increment_s"],
            "wall_time_s": self._wall_before + time.monotonic() - self._began,
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._latest[trial.trial_id] = line
        self.unsaved.add(trial.trial_id)
        if self.on_report is not None:
            self.on_report(line, self.cost_total)

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        if not self.is_repetition(trial.trial_id, trial.last_result):
            self.unsaved.discard(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.unsaved.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.unsaved.discard(trial.trial_id)
        self.failures_in_a_row += 1
        self.failures[trial.trial_id] = _last_line(trial)

    def is_repetition(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial has reported more than this before."""
        return trial_id in self._latest and result.get("epoch", 0) < self._latest[trial_id]["epoch"]

    def total_with(self, trial_id: str, result: Mapping[str, Any]) -> float:
        """What will have been spent when this report is recorded."""
        return self.cost_total + (0.0 if _key(trial_id, result) in self._seen else result["cost_increment"])

    def _count(self, reports: list[dict[str, Any]]) -> None:
        """Start counting after these."""
        self._seen = {_key(report["trial_id"], report) for report in reports}
        self._latest = {report["trial_id"]: report for report in reports}
        self.cost_total = reports[-1]["cost_total"] if reports else 0.0
        self._wall_before = max([self._wall_before, *(report["wall_time_s"] for report in reports)])

    def _drop_unknown(self, known: set[str]) -> None:
        reports = read_reports(self.path)
        kept = [report for report in reports if report["trial_id"] in known]
        if len(kept) == len(reports):
            return
        spent: dict[str, float] = {}
        total = 0.0
        for report in kept:
            total += report["cost"] - spent.get(report["trial_id"], 0.0)
            spent[report["trial_id"]] = report["cost"]
            report["cost_total"] = total
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(json.dumps(report) + "\n" for report in kept))
        os.replace(partial, self.path)
        self._count(kept)


class BudgetStopper(tune.Stopper):
    """Ends a run when its recorder has counted the budget, or when one trial after the other fails.

    Args:
        recorder: of the run.
        budget: in plain-epoch equivalents.
        save_last: whether trials cut off by the budget save a last checkpoint first; for those whose schedule is read
            from there.
    """

    _newest: BudgetStopper

    def __init__(self, recorder: Recorder, budget: float, *, save_last: bool = False) -> None:
        self.recorder = recorder
        self.budget = budget
        self.save_last = save_last
        BudgetStopper._newest = self

    def __reduce__(self) -> tuple[Any, ...]:
        """As a reference to the newest stopper.

        Tune saves the stopper with the state of a run, and on resume goes on with what it saved: a copy, with a
        recorder that no report reaches, would never stop anything.
        """
        return BudgetStopper._the_newest, ()

    @classmethod
    def _the_newest(cls) -> BudgetStopper:
        return cls._newest

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        # Tune asks before it calls the recorder; a trial that ends here is saved, one that `stop_all` ends is not.
        recorder = self.recorder
        return (
            self.save_last
            and not recorder.is_repetition(trial_id, result)
            and recorder.total_with(trial_id, result) >= self.budget
        )

    def stop_all(self) -> bool:
        return self.hopeless or (self.spent and not (self.save_last and self.recorder.unsaved))

    @property
    def spent(self) -> bool:
        return self.recorder.cost_total >= self.budget

    @property
    def hopeless(self) -> bool:
        return self.recorder.failures_in_a_row >= FAILURES_IN_A_ROW


def read_reports(path: Path) -> list[dict[str, Any]]:
    """The reports of a file, in order; none if there is no file.

    A last line cut short by a crash was never counted, and is cut off the file so that the next one starts clean.

    Raises:
        ValueError: a line before the last is damaged; the message names file and line.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole, newline, rest = data.rpartition(b"\n")
    if rest:
        with open(path, "r+b") as file:
            file.truncate(len(whole) + len(newline))
    reports = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            report = json.loads(line)
            _key(report["trial_id"], report)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}); delete its folder to run it again") from None
        reports.append(report)
    return reports


# What Tune adds to every result: where and when it was made, its own counts, and the config.
_TUNES_OWN = frozenset(
    [
        "checkpoint_dir_name",
        "config",
        "date",
        "done",
        "episodes_total",
        "experiment_tag",
        "hostname",
        "iterations_since_restore",
        "node_ip",
        "pid",
        "should_checkpoint",
        "time_since_restore",
        "time_this_iter_s",
        "time_total_s",
        "timestamp",
        "timesteps_total",
        "training_iteration",
        "warmup_time",
    ]
)
_INCREMENTS = frozenset({"cost_increment", "device_time_increment_s"})


def _key(trial_id: str, report: Mapping[str, Any]) -> tuple[str, str, int]:
    return trial_id, report.get("segment", ""), report["epoch"]


def _last_line(trial: Any) -> str:
    """The message of the exception that ended a trial."""
    error_file = getattr(trial, "error_file", None)
    if error_file and Path(error_file).exists():
        lines = [line.strip() for line in Path(error_file).read_text().splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "the trial's process died"
