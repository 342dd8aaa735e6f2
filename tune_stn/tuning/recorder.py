"""A Tune callback that keeps every report of a run, and writes them as the tables `reports` and `schedule`."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ray import tune

from tune_stn.tuning import journal
from tune_stn.tuning.directory import Labels, write_directory
from tune_stn.tuning.journal import COPIED, EVENT, FAILED, FINISHED, REPORTS
from tune_stn.tuning.ledger import Ledger, place_of
from tune_stn.tuning.lineage import Segment
from tune_stn.tuning.reading import INCREMENTS, Reading, describes_itself, reported_numbers, result_numbers
from tune_stn.tuning.recorded import read_own_schedules, read_recorded

ENDED = ("TERMINATED", "ERROR")  # Tune's words for a trial's status
_SELDOM = 20  # the tables are not written before so many times as long has passed as the last writing took

OnReport = Callable[[Mapping[str, Any], float], None]
logger = logging.getLogger(__name__)


class Recorder(tune.Callback):
    """Records a run of Ray Tune, of any trainable under any searcher and scheduler, as `reports` and `schedule`.

    Each report is appended to a journal (`reports.jsonl`) and on the disk when the call returns. From it the tables
    `reports.parquet` and `schedule.parquet` and a `study.json` are written now and then, and when the run ends, so that
    `load_results(directory)` and `tune-stn report DIRECTORY` show the run as they show a study. All happens on the
    driver. Through `Tuner.restore` (or `tune.run(resume=...)`) the recorder goes on in its directory.

    `reports` has all numbers that trials report (nested ones by path, `eval/loss`). `val_loss` is the `metric`. `epoch`
    counts the reports of a trial and never rewinds, unlike Tune's `training_iteration` on an exploit; so does `step`
    where neither `step` nor Tune's `timesteps_total` is reported. `cost` and `cost_total` add up what the trial and the
    run have spent, one a report where trials report no `cost` that adds up. Losses and `device_time_s` are NaN where
    they are not reported. Work that a trial repeats after a failure stands in place of what it repeats, and is not
    charged again. `status` is `finished` where Tune ended the trial: by itself, a stop criterion or the scheduler.

    `schedule` has a row for each hyperparameter at the start of a trial (`fixed`); where it goes on from another
    trial's checkpoint, as in population-based training (`exploit` for a value that the parent had at the time, else
    `explore`, both with `parent_trial_id`); and where a scheduler changed a trial's config otherwise (`replay`). A
    trainable that tunes its own hyperparameters reports `hp/<name>` and `scale/<name>`, as `STNTrainable` does
    (`stn`; every hyper-step if its last checkpoint holds a `schedule.parquet`).

    Args:
        directory: of this run alone; made where it is missing.
        metric: the key of what is minimised or maximised on validation data.
        mode: "min", or "max": then `val_loss` is the metric with its sign turned.
        columns: where a trainable's keys have other names: {"test_loss": "eval/loss", "cost": "gpu_hours"}; of
            `train_loss`, `test_loss`, `step`, `cost`, `device_time_s`.
        hps: which entries of a trial's config are hyperparameters, by path (`optimizer/lr`; entries of `config["hp"]`
            by their names alone). Default: all that are numbers, or those that the trainable reports as `hp/<name>`.
        task: name in the tables; default the trainable's.
        method: name in the tables.
        seed: number in the tables.
        overwrite: whether a new run may replace the record of another one in the directory.
        write_every_s: seconds between two writings of the tables, at least; None to write none.
        on_report: called with each new report and the running total of cost.
        cost_before: what was spent before this run for its sake, in the unit of `cost`; `cost_total` goes on from it.
            Default 0.
        time_before: the seconds that this took; `wall_time_s` goes on from them. Default 0.

    Attributes:
        failures_in_a_row: without a report in between.
        unsaved: trials that have reported more than their newest checkpoint holds.

    Raises:
        ValueError: an argument is not accepted; a line of the journal is damaged; or, when the run starts, the
            directory holds the record of another one.

    Example:
        >>> tune.run(theirs, config={"lr": tune.loguniform(1e-4, 1e-1)}, callbacks=[Recorder("runs/1", metric="loss")])
        >>> tune_stn.load_results("runs/1").schedule
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        metric: str = "val_loss",
        mode: Literal["min", "max"] = "min",
        columns: Mapping[str, str] | None = None,
        hps: Collection[str] | None = None,
        task: str | None = None,
        method: str = "tune",
        seed: int = 0,
        overwrite: bool = False,
        write_every_s: float | None = 60.0,
        on_report: OnReport | None = None,
        cost_before: float = 0.0,
        time_before: float = 0.0,
    ) -> None:
        self.reading = Reading(metric=metric, mode=mode, columns=dict(columns or {}), hps=hps)
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / REPORTS
        self.task, self.method, self.seed = task, method, seed
        self.overwrite = overwrite
        self.write_every_s = write_every_s
        self.on_report = on_report
        self.cost_before, self.time_before = cost_before, time_before
        self.failures_in_a_row = 0
        self.unsaved: set[str] = set()
        journal.cut_torn_end(self.path)
        self._ledger = self._count(journal.read_lines(self.path))
        self._continued = self.path.exists()
        self._began = time.monotonic() - self._ledger.wall_time_s
        self._next_writing = math.inf if write_every_s is None else time.monotonic() + write_every_s

    def __reduce__(self) -> tuple[Any, ...]:
        """As its arguments: `Tuner` saves its callbacks, and what they have counted is in the journal."""
        arguments: dict[str, Any] = {**vars(self.reading), "directory": self.directory}
        for name in ("task", "method", "seed", "overwrite", "write_every_s", "on_report", "cost_before", "time_before"):
            arguments[name] = getattr(self, name)
        return functools.partial(Recorder, **arguments), ()

    @property
    def cost_total(self) -> float:
        """Spent by all trials, and before them."""
        return self._ledger.cost_total

    @property
    def failures(self) -> Mapping[str, str]:
        """Trial -> why it failed for good."""
        return self._ledger.failures

    # What Tune calls ------------------------------------------------------------------------------------------------

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        self._continued = self.path.exists()

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        if self._continued:  # the first step, and Tune has brought its trials back, but made no new ones yet
            self._continued = False
            self._drop_unknown({trial.trial_id: trial.status for trial in trials})
            self.unsaved = {
                t.trial_id
                for t in trials
                if t.trial_id in self._ledger.latest and t.status not in ENDED and not self._is_saved(t)
            }

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self._ledger.lineage.start(trial, trials)

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        self._ledger.lineage.note(trial, trials)  # the scheduler has decided already what the trial goes on from
        line = self._line(trial, result)
        before = self._ledger.losses.get(place_of(line))
        if before is not None and (before == line["val_loss"] or (math.isnan(before) and math.isnan(line["val_loss"]))):
            return  # a repetition, and exact: nothing new
        if line["parent_trial_id"] and (trial.trial_id, line["segment"]) not in self._ledger.copies:
            self._append(self._copy(trial, line))
        self._append(line)
        if before is None:
            self.failures_in_a_row = 0
            self.unsaved.add(trial.trial_id)
            if self.on_report is not None:
                self.on_report(line, self.cost_total)
        if time.monotonic() >= self._next_writing:
            self._write(trials, over=False)

    def on_checkpoint(
        self, iteration: int, trials: Sequence[Any], trial: Any, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        if not self.is_repetition(trial.trial_id, trial.last_result):
            self.unsaved.discard(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.unsaved.discard(trial.trial_id)
        if not describes_itself(trial.last_result):
            self._append({EVENT: FINISHED, "trial_id": trial.trial_id})

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.unsaved.discard(trial.trial_id)
        self.failures_in_a_row += 1
        self._append({EVENT: FAILED, "trial_id": trial.trial_id, "reason": _last_line(trial)})

    def on_experiment_end(self, trials: Sequence[Any], **info: Any) -> None:
        if self.write_every_s is not None:
            self._write(trials, over=True)

    # What a budget asks ---------------------------------------------------------------------------------------------

    def is_repetition(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial has reported more than this before."""
        latest = self._ledger.latest.get(trial_id)
        return latest is not None and self._ledger.place(trial_id, result)[2] < latest["epoch"]

    def total_with(self, trial_id: str, result: Mapping[str, Any]) -> float:
        """What will have been spent when this result, of a trainable that reports `cost_increment`, is recorded."""
        known = self._ledger.place(trial_id, result) in self._ledger.losses
        return self.cost_total + (0.0 if known else result["cost_increment"])

    # The journal ----------------------------------------------------------------------------------------------------

    def _count(self, lines: Iterable[Mapping[str, Any]]) -> Ledger:
        return Ledger(lines, self.reading, cost_total=self.cost_before, wall_time_s=self.time_before)

    def _append(self, line: Mapping[str, Any]) -> None:
        journal.append(self.path, line)
        self._ledger.take(line)

    def _line(self, trial: Any, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result as a line of the journal; a repetition adds nothing to what has been spent."""
        found = result_numbers(result)
        place = trial_id, segment, epoch = self._ledger.place(trial.trial_id, result)
        own, values = self._ledger.lineage.current(trial_id)
        if describes_itself(result):
            described = {name: result[name] for name in ("parent_trial_id", "status", "reason")}
        else:
            described = {"parent_trial_id": own.parent_trial_id, "status": "running"}
            described["training_iteration"] = result["training_iteration"]
        spent = {column: self._ledger.latest.get(trial_id, {}).get(column, 0.0) for column in INCREMENTS}
        cost_total = self.cost_total
        if place not in self._ledger.losses:
            before = result_numbers(trial.last_result)
            added = {column: self.reading.increment(column, found, before) for column in INCREMENTS}
            spent = {column: spent[column] + added[column] for column in INCREMENTS}
            cost_total += added["cost"]
        if self.reading.metric not in found and not self._ledger.latest:
            text = "the first report has no number %r, so it has no val_loss; name what it has by Recorder(metric=): %s"
            logger.warning(text, self.reading.metric, ", ".join(reported_numbers(found)) or "no number at all")
        return {
            **{"trial_id": trial_id, "segment": segment, **described},
            **reported_numbers(found),
            **self.reading.hp_columns(found, values),
            **self.reading.losses(found),
            **{"epoch": epoch, "step": self.reading.step(found, epoch), **spent, "cost_total": cost_total},
            "wall_time_s": time.monotonic() - self._began,
        }

    def _copy(self, trial: Any, line: Mapping[str, Any]) -> dict[str, Any]:
        """The event of the copy that a report is the first after."""
        segment, epoch = self._ledger.lineage.current(trial.trial_id)[0], line["epoch"] - 1
        if segment.parent_trial_id != line["parent_trial_id"]:
            segment = Segment("", {})  # the trainable has copied by a way of its own
        return {
            EVENT: COPIED,
            **{name: line[name] for name in ("trial_id", "segment", "parent_trial_id")},
            **{"epoch": epoch, "step": self.reading.step(result_numbers(trial.last_result), epoch)},
            **{"checkpoint": segment.checkpoint, "values": segment.values, "sources": segment.sources},
        }

    def _is_saved(self, trial: Any) -> bool:
        """Whether the newest checkpoint that Tune knows of a trial holds all that it has reported."""
        newest = trial.latest_checkpoint_result
        return newest is not None and not self.is_repetition(trial.trial_id, newest.metrics)

    def _drop_unknown(self, known: Mapping[str, str]) -> None:
        """Forget trials that Tune had not saved when its process died, and the end of trials that go on after all.

        Args:
            known: trial -> Tune's word for its status.

        Raises:
            ValueError: Tune knows none of the trials, and the record may not be overwritten.
        """
        lines = list(journal.read_lines(self.path))
        if lines and not self.overwrite and all(line["trial_id"] not in known for line in lines):
            advice = "take another directory, or overwrite=True; to go on with that run, use Tuner.restore"
            advice += " (if you did, Ray Tune's message above says why it could not, and has begun a new one)"
            raise ValueError(f"{self.directory} holds the record of another run: {advice}")
        kept = [
            line
            for line in lines
            if known.get(line["trial_id"]) in ENDED
            or (line["trial_id"] in known and line.get(EVENT) not in (FAILED, FINISHED))
        ]
        if len(kept) == len(lines):
            return
        if not kept:
            text = "%s: Ray Tune has no saved state to go on with, so the run begins anew; reports dropped: %d"
            logger.warning(text, self.directory, sum(EVENT not in line for line in lines))
        spent: dict[str, float] = {}
        total = self.cost_before
        for line in kept:
            if EVENT not in line:
                total += line["cost"] - spent.get(line["trial_id"], 0.0)
                spent[line["trial_id"]] = line["cost"]
                line["cost_total"] = total
        journal.replace(self.path, kept)
        self._ledger = self._count(kept)

    def _write(self, trials: Sequence[Any], *, over: bool) -> None:
        began = time.monotonic()
        task = self.task or (trials[0].trainable_name if trials else "unknown")
        write_directory(
            self.directory,
            read_recorded(self.path),
            Labels(task=task, method=self.method, seed=self.seed),
            own_schedules=read_own_schedules(trials) if over else None,
            over=over,
            settings={name: value for name, value in vars(self.reading).items() if name != "hps"},
        )
        now = time.monotonic()
        self._next_writing = now + max(self.write_every_s or 0.0, _SELDOM * (now - began))


def _last_line(trial: Any) -> str:
    """The message of the exception that ended a trial, from the file that Tune writes on the driver's disk."""
    error_file = trial.error_file
    if error_file and Path(error_file).exists():
        lines = [line.strip() for line in Path(error_file).read_text().splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "the trial's process died"
