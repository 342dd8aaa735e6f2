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

OnReport = Callable[[Mapping[str, Any], float], None]


class Recorder(tune.Callback):
    """Appends each report to a file of JSON lines, and adds up what the run has spent.

    A trial that goes on from a checkpoint after a failure repeats the epochs since. Such a repetition is known by its
    trial, segment and epoch, is equal to the first report bit for bit, and is neither kept nor charged again. The
    file is read back at construction, so a run continued after a crash of the driver goes on counting where it was.
    `cost` and `device_time_s` are kept as what the trial itself has spent: a copy of another trial's checkpoint brings
    that one's counts with it, and they are charged already.

    Args:
        path: the file; lines hold the report with `wall_time_s` and `cost_total`.
        on_report: called with each new report and the running total of cost.
    """

    def __init__(self, path: Path, on_report: OnReport | None = None) -> None:
        self.path = path
        self.on_report = on_report
        self.cost_total = 0.0
        self.failures: dict[str, str] = {}
        self.failures_in_a_row = 0
        self._seen: set[tuple[str, str, int]] = set()
        self._own: dict[str, tuple[float, float]] = {}
        self._wall_before = 0.0
        for report in read_reports(path):
            self._seen.add(_key(report["trial_id"], report))
            self._own[report["trial_id"]] = report["cost"], report["device_time_s"]
            self.cost_total = report["cost_total"]
            self._wall_before = report["wall_time_s"]
        self._began = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        key = _key(trial.trial_id, result)
        if key in self._seen:
            return
        self._seen.add(key)
        self.failures_in_a_row = 0
        self.cost_total += result["cost_increment"]
        cost, device_time_s = self._own.get(trial.trial_id, (0.0, 0.0))
        cost, device_time_s = cost + result["cost_increment"], device_time_s + result["device_time_increment_s"]
        self._own[trial.trial_id] = cost, device_time_s
        kept = {name: value for name, value in result.items() if name in _REPORT_KEYS or _metric_or_hp(name)}
        line = kept | {
            "trial_id": trial.trial_id,
            "cost": cost,
            "cost_total": self.cost_total,
            "device_time_s": device_time_s,
            "wall_time_s": self._wall_before + time.monotonic() - self._began,
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.on_report is not None:
            self.on_report(line, self.cost_total)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.failures_in_a_row += 1
        self.failures[trial.trial_id] = _last_line(trial)


class BudgetStopper(tune.Stopper):
    """Ends a run when its recorder has counted the budget, or when one trial after the other fails."""

    def __init__(self, recorder: Recorder, budget: float) -> None:
        self.recorder = recorder
        self.budget = budget

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.spent or self.hopeless

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


_REPORT_KEYS = frozenset({"epoch", "step", "train_loss", "parent_trial_id", "segment", "status", "reason"})


def _metric_or_hp(name: str) -> bool:
    return name.startswith(("val_", "test_", "hp/"))


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
