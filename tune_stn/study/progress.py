"""Lines of progress that a person can follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

from tune_stn.study.run import Run
from tune_stn.tuning.recorder import OnReport

EVERY_S = 10.0  # at most one line of a run in this time


class Progress:
    """Says how the runs of a study get on.

    Args:
        say: called with each line.
        total: number of runs.
    """

    def __init__(self, say: Callable[[str], None], *, total: int) -> None:
        self.say = say
        self.total = total
        self.count = 0
        self.best = float("inf")
        self.began = 0.0
        self.reasons: set[str] = set()  # of failures of the run, as far as they were said

    def skipped(self, run: Run) -> None:
        self.count += 1
        failed = len((run.done or {"failures": ()})["failures"])
        words = f"; {failed} of its trials failed, which --retry-failed runs again" if failed else ""
        self.say(f"{self._label(run)} finished before, skipped{words}")

    @contextmanager
    def running(self, run: Run, again: str = "") -> Iterator[OnReport]:
        """Announce a run, and why it is taken up again if it had ended; gives a function that is told each report."""
        self.count += 1
        if again:
            self.say(f"{self._label(run)} taken up again, for {again}")
        self.best, self.began, self.reasons = run.best_before, time.monotonic(), set()
        last = self.began

        def on_report(report: Mapping[str, Any], cost_total: float) -> None:
            nonlocal last
            self.best = min(self.best, report["val_loss"])
            if report["status"] == "diverged":
                self.say(f"{self._label(run)} trial {report['trial_id']} diverged: {report['reason']}")
            elif report.get("reason"):
                self.say(f"{self._label(run)} trial {report['trial_id']} was restarted: {report['reason']}")
            if time.monotonic() - last >= EVERY_S:
                last = time.monotonic()
                spent = f"cost {cost_total:.0f}" + (f" of {round(run.limit, 1):g}" if run.trials is None else "")
                self.say(f"{self._label(run)} {spent}, best validation loss {self.best:.4f}")

        yield on_report

    def finished(self, run: Run, record: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self.began
        failures = f", {len(record['failures'])} failed" if record["failures"] else ""
        peak = record["peak_memory_bytes"]
        ended = "given up" if record["hopeless"] else "done"
        best = f"best validation loss {self.best:.4f}" if isfinite(self.best) else "no validation loss"
        self.say(
            f"{self._label(run)} {ended}: {record['trials']} trials{failures}, cost {record['cost_total']:.1f}, "
            f"{best}, {seconds:.0f} s" + (f", {peak / 2**20:.0f} MiB a trial" if peak else "")
        )

    def failed(self, run: Run, trial_id: str, lines: Sequence[str], path: str | None, again: bool) -> None:
        """Say why a trial failed, and whether it is started again; with the end of its traceback where that is new."""
        reason = lines[-1].strip()
        words = "failed and is started again" if again else "failed"
        text = [f"{self._label(run)} trial {trial_id} {words}: {reason}"]
        if reason not in self.reasons:
            text += [f"  {line}" for line in lines[:-1]]
        if path is not None:
            text.append(f"  the whole traceback: {path}")
        self.reasons.add(reason)
        self.say("\n".join(text))

    def without_result(self, run: Run, reason: str) -> None:
        self.say(f"{self._label(run)} has no result: {reason}")

    def _label(self, run: Run) -> str:
        return f"[{self.count}/{self.total}] {run.method.name}, seed {run.seed}:"
