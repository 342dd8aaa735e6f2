"""Lines of progress that a person can follow, from the journals of the runs that go on."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_stn.study.run import Run
from tune_stn.tuning.recording.journal import EVENT, FAILED, REPORTS, RESTARTED

EVERY_S = 10.0  # at most one line of a run's cost in this time, and as many times as long as runs go on
SHOW_EVERY_S = 0.5


@dataclass(eq=False)
class Going:
    """A run that goes on, as far as its journal has been read.

    Attributes:
        run: The run.
        label: Text before each line about it.
        began: Time at which it began, by `time.monotonic`.
        spoke: Time at which its cost was said last, or it began.
        best: Its best validation loss; infinite before the first.
        cost_total: Spent by all of its trials, in plain-epoch equivalents.
        latest: The newest report of its journal; empty before the first.
        trials: Those that have reported or failed.
        epochs: Trial -> those that it has reported.
        heard: Time at which its newest report of this execution came. Default None: none has come.
        limit: The `cost_total` that ends it.
    """

    run: Run
    label: str
    began: float
    spoke: float
    best: float = math.inf
    cost_total: float = 0.0
    latest: Mapping[str, Any] = field(default_factory=dict)
    trials: set[str] = field(default_factory=set)
    epochs: dict[str, int] = field(default_factory=dict)
    heard: float | None = None
    limit: float = field(init=False)
    reasons: set[str] = field(default_factory=set)  # of failures, as far as they were said
    journal: _Tail = field(init=False)

    def __post_init__(self) -> None:
        self.journal = _Tail(self.run.folder / REPORTS)
        self.limit = self.run.limit


class Progress:
    """Says how the runs of a study get on.

    Args:
        say: Called with each line.
        total: Number of runs.
        show: Called with this when a run begins or ends, and twice a second, to show what goes on; what a run has
            spent is then not said in lines. Default None.

    Attributes:
        count: Runs that have begun or had finished before.
        going: The runs that go on.
    """

    def __init__(
        self, say: Callable[[str], None], *, total: int, show: Callable[[Progress], None] | None = None
    ) -> None:
        self.say = say
        self.total = total
        self.show = show
        self.count = 0
        self.going: dict[Path, Going] = {}
        self._shown = -math.inf

    def skipped(self, run: Run) -> None:
        """Say that a run had finished before, and with how many failed trials."""
        self.count += 1
        failed = len((run.done or {"failures": ()})["failures"])
        words = f"; {failed} of its trials failed, which --retry-failed runs again" if failed else ""
        self.say(f"{self._label(run)} finished before, skipped{words}")

    def started(self, run: Run, again: str = "") -> None:
        """Say that a run begins, and why it is taken up again if it had ended; follow it from now on."""
        self.count += 1
        label, now = self._label(run), time.monotonic()
        self.say(f"{label} taken up again, for {again}" if again else f"{label} started")
        going = Going(run, label, began=now, spoke=now)
        for line in going.journal.read():  # of an earlier execution, which was told them
            if run.method.restores:
                self._take(going, line)
        self.going[run.folder] = going
        self._show()

    def look(self) -> None:
        """Say what is new in the journals of the runs that go on."""
        for going in self.going.values():
            self._look(going)
        self._show(SHOW_EVERY_S)

    def finished(self, run: Run, record: Mapping[str, Any]) -> None:
        """Say how a run ended, and follow it no more."""
        going = self._end(run)
        failures = f", {len(record['failures'])} failed" if record["failures"] else ""
        peak = record["peak_memory_bytes"]
        ended = "given up" if record["hopeless"] else "done"
        best = f"best validation loss {going.best:.4f}" if math.isfinite(going.best) else "no validation loss"
        self.say(
            f"{going.label} {ended}: {record['trials']} trials{failures}, cost {record['cost_total']:.1f}, {best}, "
            f"{time.monotonic() - going.began:.0f} s" + (f", {peak / 2**20:.0f} MiB a trial" if peak else "")
        )

    def without_result(self, run: Run, reason: str) -> None:
        """Say why a run has no result, and follow it no more."""
        self.say(f"{self._end(run).label} has no result: {reason}")

    def died(self, run: Run) -> None:
        """Say that the process which ran a run's trials was lost, and that another one takes it over."""
        going = self.going[run.folder]
        self._look(going)
        if run.method.restores:
            self.say(f"{going.label} its process died; the run goes on from there in another one")
        else:
            self.say(f"{going.label} its process died; the run begins anew in another one")
            going.best, going.cost_total, going.latest = math.inf, 0.0, {}
            going.trials.clear()

    def _end(self, run: Run) -> Going:
        self._look(self.going[run.folder])
        going = self.going.pop(run.folder)
        self._show()
        return going

    def _label(self, run: Run) -> str:
        return f"[{self.count}/{self.total}] {run.method.name}, seed {run.seed}:"

    def _show(self, every_s: float = 0.0) -> None:
        now = time.monotonic()
        if self.show is not None and now - self._shown >= every_s:
            self._shown = now
            self.show(self)

    def _look(self, going: Going) -> None:
        now = time.monotonic()
        for line in going.journal.read():
            self._take(going, line)
            self._tell(going, line)
            if EVENT not in line:
                going.heard = now
        if self.show is None and going.latest and now - going.spoke >= EVERY_S * len(self.going):
            going.spoke = now
            of = f" of {round(going.limit, 1):g}" if going.run.trials is None else ""
            best = f"best validation loss {going.best:.4f}"
            self.say(f"{going.label} cost {going.cost_total:.0f}{of}, {best}")

    def _take(self, going: Going, line: Mapping[str, Any]) -> None:
        going.trials.add(line["trial_id"])
        if EVENT not in line:
            going.latest = line
            going.epochs[line["trial_id"]] = max(line["epoch"], going.epochs.get(line["trial_id"], 0))
            going.cost_total = max(going.cost_total, line["cost_total"])
            if line["val_loss"] < going.best:
                going.best = line["val_loss"]

    def _tell(self, going: Going, line: Mapping[str, Any]) -> None:
        """Say what a line of a journal says that a person wants to know at once."""
        trial = f"{going.label} trial {line['trial_id']}"
        if line.get(EVENT) in (FAILED, RESTARTED):
            words = "failed and is started again" if line[EVENT] == RESTARTED else "failed"
            reason, file = line["reason"], line.get("file")
            text = [f"{trial} {words}: {reason}"]
            if reason not in going.reasons:
                text += [f"  {one}" for one in line.get("lines", ())[:-1]]
            if file is not None:
                text.append(f"  the whole traceback: {going.run.folder / file}")
            going.reasons.add(reason)
            self.say("\n".join(text))
        elif EVENT not in line and line["status"] == "diverged":
            self.say(f"{trial} diverged: {line['reason']}")
        elif EVENT not in line and line.get("reason"):
            self.say(f"{trial} was restarted: {line['reason']}")


class _Tail:
    """Reads a journal as it grows.

    A run that goes on writes its journal anew, with lines that were there: those are not given again.

    Args:
        path: Path of the journal, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, bytes] | None = None  # its inode, which a new file may have after it, and first line
        self._position = 0
        self._in_file: Counter[int] = Counter()
        self._given: Counter[int] = Counter()

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines since the last time, but for one that is not finished yet."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return
        with file:
            found = os.fstat(file.fileno()).st_ino, file.readline()
            if found != self._file:
                if not found[1].endswith(b"\n"):
                    return
                self._file, self._position = found, 0
                self._in_file.clear()
            file.seek(self._position)
            for data in file:
                if not data.endswith(b"\n"):
                    return
                self._position += len(data)
                line = json.loads(data)
                name = hash(tuple(line.get(key) for key in (EVENT, "trial_id", "segment", "epoch", "reason")))
                self._in_file[name] += 1
                if self._in_file[name] > self._given[name]:
                    self._given[name] += 1
                    yield line
