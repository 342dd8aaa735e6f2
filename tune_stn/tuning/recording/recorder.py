"""A Tune callback that keeps every report of a run, and writes them as the tables `reports` and `schedule`."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from ray import tune

from tune_stn.tuning.recording.directory import Labels, write_directory
from tune_stn.tuning.recording.journal import FAILED, FINISHED, RESTARTED, STARTUP, TOOK
from tune_stn.tuning.recording.ledger import ENDED, Ledger, place_of
from tune_stn.tuning.recording.lines import Lines, end_event, failure_event
from tune_stn.tuning.recording.record import Record
from tune_stn.tuning.recording.result_reader import ResultReader, describes_itself
from tune_stn.tuning.recording.tables import read_own_schedules, read_recorded

_SELDOM = 20  # the tables are not written before so many times as long has passed as the last writing took

OnReport = Callable[[Mapping[str, Any], float], None]
Hook = TypeVar("Hook", bound=Callable[..., None])
logger = logging.getLogger(__name__)


def _harmless(hook: Hook) -> Hook:
    """A method that Tune calls; its error is logged instead of ending the run, unless the recorder is strict."""

    @functools.wraps(hook)
    def call(self: Recorder, *args: Any, **named: Any) -> None:
        try:
            hook(self, *args, **named)
        except Exception as error:
            if self.strict:
                raise
            self.errors.append(f"{type(error).__name__}: {error}")
            if self.errors[-1] not in self.errors[:-1]:
                text = "%s: something was not recorded; the run goes on, and this error is not logged again"
                logger.exception(text, self.directory)

    return cast(Hook, call)


class Recorder(tune.Callback):
    """Records a run of Ray Tune, of any trainable under any searcher and scheduler, as `reports` and `schedule`.

    Each report is appended to a journal (`reports.jsonl`) and on the disk when the call returns. From it the tables
    `reports.parquet` and `schedule.parquet` and a `study.json` are written now and then, and when the run ends, so that
    `load_results(directory)` and `tune-stn report DIRECTORY` show the run as they show a study. All happens on the
    driver. Through `Tuner.restore` (or `tune.run(resume=...)`) the recorder goes on in its directory; where that lies
    in the experiment's folder and was moved with it, in the new place; and where it is not to be found, in a new one
    that begins with the newest report of each trial that Tune has saved, so that costs are right.

    The run that is recorded is the same as without a recorder: an error in recording is logged, once, and ends nothing.

    `reports` has all numbers that trials report (nested ones by path, `eval/loss`), arrays and tensors without axes
    among them. One with the name of a column that has something else in it (`seed`, `status`, an `epoch` that rewinds)
    is in `reported/<name>`; the log says so. Hyperparameters that are not numbers are in `choice/<name>`, as text.
    `val_loss` is the `metric`. `epoch`
    counts the reports of a trial and never rewinds, unlike Tune's `training_iteration` on an exploit; so does `step`
    where neither `step` nor Tune's `timesteps_total` is reported. `cost` and `cost_total` add up what the trial and the
    run have spent, one a report where trials report no `cost` that adds up. Losses and `device_time_s` are NaN where
    they are not reported. `wall_time_s` counts from when the first trial runs, without time in which the run was off.
    Work that a trial repeats after a failure stands in place of what it repeats, and is not charged again. `status` is
    `finished` where Tune ended the trial: by itself, a stop criterion or the scheduler.

    The whole traceback of a trial that failed is kept in `errors/<trial>.txt`, restarted or not.

    `schedule` has a row for each hyperparameter at the start of a trial (`fixed`); where it goes on from another
    trial's checkpoint, as in population-based training (`exploit` for a value that the parent had at the time, else
    `explore`, both with `parent_trial_id`); and where a scheduler changed a trial's config otherwise (`replay`). A
    trainable that tunes its own hyperparameters reports `hp/<name>` and `scale/<name>`, as `STNTrainable` does
    (`stn`; every hyper-step if its last checkpoint holds a `schedule.parquet`).

    Args:
        directory: Directory of this run alone; made when the run starts, where it is missing.
        metric: Key of what is minimised or maximised on validation data.
        mode: "min", or "max": then `val_loss` is the metric with its sign turned.
        columns: Column -> the trainable's key, where that has another name: {"test_loss": "eval/loss", "cost":
            "gpu_hours"}; of `train_loss`, `test_loss`, `step`, `cost`, `device_time_s`.
        hps: Entries of a trial's config that are hyperparameters, by path (`optimizer/lr`; entries of `config["hp"]` by
            their names alone). Default: all that are numbers, or those that the trainable reports as `hp/<name>`; and
            all that are words, switches, None, or lists of such.
        task: Name of the task in the tables. Default the trainable's.
        method: Name of the method in the tables.
        seed: Number of the seed in the tables.
        overwrite: Whether a new run may replace the record of another one in the directory.
        write_every_s: Least number of seconds between two writings of the tables; None to write none.
        on_report: Function called with each new report and the running total of cost.
        cost_before: Cost spent before this run for its sake, in the unit of `cost`; `cost_total` goes on from it.
            Default 0.
        time_before: Seconds spent before this run for its sake; `wall_time_s` goes on from them. Default 0.
        strict: Whether an error in recording (a full disk, say) or in `on_report` ends the run. Default False.

    Attributes:
        directory: The directory to which it records.
        errors: Errors in recording, as text.
        failures_in_a_row: Number of trials that failed without a report in between.
        unsaved: Trials that have reported more than their newest checkpoint holds.

    Raises:
        ValueError: an argument is not accepted. Or, when the run starts and before its first trial does: the directory
            cannot be made, holds the record of another run, or a damaged one.

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
        strict: bool = False,
    ) -> None:
        self.reader = ResultReader(metric=metric, mode=mode, columns=dict(columns or {}), hps=hps)
        self._lines = Lines(self.reader)
        # Nothing is read or written before the run starts.
        self._record = Record(Path(directory).resolve(), self.reader, cost_total=cost_before, wall_time_s=time_before)
        self.task, self.method, self.seed = task, method, seed
        self.overwrite = overwrite
        self.write_every_s = write_every_s
        self.on_report = on_report
        self.cost_before, self.time_before = cost_before, time_before
        self.strict = strict
        self.failures_in_a_row = 0
        self.unsaved: set[str] = set()
        self.errors: list[str] = []
        self._continued = False
        self._experiment = ""
        self._saved: dict[str, Any] = {}
        self._ready, self._began, self._next_writing = 0.0, math.nan, math.inf
        self._startup: dict[str, float] = {}  # for the next report

    def __reduce__(self) -> tuple[Any, ...]:
        """As its arguments: `Tuner` saves its callbacks, and what they have counted is in the journal."""
        arguments: dict[str, Any] = {**vars(self.reader), "directory": self.directory}
        for name in ("task", "method", "seed", "overwrite", "write_every_s", "on_report", "cost_before", "time_before"):
            arguments[name] = getattr(self, name)
        return functools.partial(Recorder, **arguments, strict=self.strict), ()

    @property
    def directory(self) -> Path:
        return self._record.directory

    @property
    def path(self) -> Path:
        """The journal."""
        return self._record.path

    @property
    def cost_total(self) -> float:
        """Spent by all trials, and before them."""
        return self._ledger.cost_total

    @property
    def failures(self) -> Mapping[str, str]:
        """Trial -> why it failed for good."""
        return self._ledger.failures

    def seconds(self) -> dict[str, float]:
        """What the run has taken itself, in seconds.

        Returns:
            `wall_time_s`, from the placing of its first trial to its newest report; `startup_s`, before that, of all
            processes that it went on in; `device_time_s` of all trials; and `busy_s`, the time that trials took for
            their reports, evaluation included, if they are `STNTrainable`s.
        """
        ledger = self._ledger
        device = [line["device_time_s"] for line in ledger.latest.values()]
        return {
            "wall_time_s": ledger.wall_time_s - self.time_before,
            "startup_s": ledger.startup_s,
            "device_time_s": sum(seconds for seconds in device if math.isfinite(seconds)),
            "busy_s": ledger.busy_s,
        }

    # What Tune calls ------------------------------------------------------------------------------------------------

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        if self._record.ledger is not None:  # by an earlier run, or asked for its totals
            self._continued = self.path.exists()
        if not math.isnan(self._began):
            self._ready, self._began = time.monotonic(), math.nan

    def get_state(self) -> dict[str, Any] | None:
        """What Tune saves with the experiment now and then: where the record is, and the totals."""
        if self._record.ledger is None or not self._experiment:
            return None
        latest = sorted(self._record.ledger.latest.values(), key=lambda line: line["cost_total"])
        return {"directory": str(self.directory), "experiment": self._experiment, "latest": list(map(dict, latest))}

    def set_state(self, state: dict[str, Any]) -> None:
        """Tune has restored the experiment, maybe in another place or on another machine."""
        self._saved = state

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        self._goes_on(trials)
        self._begin()
        if self._continued:  # the first step, and Tune has brought its trials back, but made no new ones yet
            self._continued = False
            self._record.keep({trial.trial_id: trial.status for trial in trials}, overwrite=self.overwrite)
            self.unsaved = {
                t.trial_id
                for t in trials
                if t.trial_id in self._ledger.latest and t.status not in ENDED and not self._is_saved(t)
            }

    @_harmless
    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self._experiment = _experiment_of([trial]) or self._experiment
        if math.isnan(self._began):
            self._start_clock()
            self._startup = {STARTUP: time.monotonic() - self._ready}
        self._lines.start(trial)
        self._ledger.lineage.start(trial, trials)

    @_harmless
    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        self._ledger.lineage.note(trial, trials)  # the scheduler has decided already what the trial goes on from
        self._start_clock()
        line = self._lines.report(trial, result, self._ledger, wall_time_s=time.monotonic() - self._began)
        before = self._ledger.losses.get(place_of(line))
        if before is not None and (before == line["val_loss"] or (math.isnan(before) and math.isnan(line["val_loss"]))):
            return  # a repetition, and exact: nothing new
        if line["parent_trial_id"] and (trial.trial_id, line["segment"]) not in self._ledger.copies:
            self._append(self._lines.copy(trial, line, self._ledger))
        if describes_itself(result):
            line |= self._startup | ({TOOK: result["time_this_iter_s"]} if "time_this_iter_s" in result else {})
            self._startup = {}
        self._append(line)
        if before is None:
            self.failures_in_a_row = 0
            self.unsaved.add(trial.trial_id)
            if self.on_report is not None:
                self.on_report(line, self.cost_total)
        if time.monotonic() >= self._next_writing:
            self._write(trials, over=False)

    @_harmless
    def on_checkpoint(
        self, iteration: int, trials: Sequence[Any], trial: Any, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        if not self.is_repetition(trial.trial_id, trial.last_result):
            self.unsaved.discard(trial.trial_id)

    @_harmless
    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.unsaved.discard(trial.trial_id)
        if not describes_itself(trial.last_result):
            self._append(end_event(trial, FINISHED))

    @_harmless
    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.unsaved.discard(trial.trial_id)
        self.failures_in_a_row += 1
        self._append(failure_event(trial, FAILED, self._ledger, self.directory))

    @_harmless
    def on_trial_recover(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self._append(failure_event(trial, RESTARTED, self._ledger, self.directory))

    @_harmless
    def on_experiment_end(self, trials: Sequence[Any], **info: Any) -> None:
        self._goes_on(trials)  # of a restored run without a step, for all of its trials had ended
        if self.write_every_s is not None:
            self._write(trials, over=True)

    # What a budget asks ---------------------------------------------------------------------------------------------

    def is_repetition(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial has reported more than this before."""
        latest = self._ledger.latest.get(trial_id)
        return latest is not None and self._lines.place(trial_id, result, self._ledger)[2] < latest["epoch"]

    def total_with(self, trial_id: str, result: Mapping[str, Any]) -> float:
        """What will have been spent when this result, of a trainable that reports `cost_increment`, is recorded."""
        known = self._lines.place(trial_id, result, self._ledger) in self._ledger.losses
        return self.cost_total + (0.0 if known else result["cost_increment"])

    # The record -----------------------------------------------------------------------------------------------------

    @property
    def _ledger(self) -> Ledger:
        self._begin()
        return cast(Ledger, self._record.ledger)

    def _begin(self) -> None:
        """Make the directory, and count what an earlier process recorded in it."""
        if self._record.ledger is not None:
            return
        self._record.open()
        self._continued = self.path.exists()
        self._ready = time.monotonic()
        self._next_writing = math.inf if self.write_every_s is None else time.monotonic() + self.write_every_s

    def _goes_on(self, trials: Sequence[Any]) -> None:
        """Find the record of a run that Tune has restored, or begin one with what Tune has saved of it."""
        saved, self._saved = self._saved, {}
        if saved and trials:
            self._experiment = _experiment_of(trials) or saved["experiment"]
            self._record.restore(saved, Path(self._experiment), trials)

    def _append(self, line: Mapping[str, Any]) -> None:
        self._begin()
        self._record.append(line)

    def _start_clock(self) -> None:
        """`wall_time_s` counts from now, or goes on counting."""
        if math.isnan(self._began):
            self._began = time.monotonic() - self._ledger.wall_time_s

    def _is_saved(self, trial: Any) -> bool:
        """Whether the newest checkpoint that Tune knows of a trial holds all that it has reported."""
        newest = trial.latest_checkpoint_result
        return newest is not None and not self.is_repetition(trial.trial_id, newest.metrics)

    def _write(self, trials: Sequence[Any], *, over: bool) -> None:
        self._begin()
        began = time.monotonic()
        self._next_writing = began + (self.write_every_s or 0.0)  # should it fail
        task = self.task or (trials[0].trainable_name if trials else "unknown")
        write_directory(
            self.directory,
            read_recorded(self.path),
            Labels(task=task, method=self.method, seed=self.seed),
            own_schedules=read_own_schedules(trials) if over else None,
            over=over,
            settings={name: value for name, value in vars(self.reader).items() if name != "hps"},
        )
        now = time.monotonic()
        self._next_writing = now + max(self.write_every_s or 0.0, _SELDOM * (now - began))


def _experiment_of(trials: Sequence[Any]) -> str:
    """The folder of the experiment that trials are of, on its storage; "" if none has a folder yet."""
    return next((str(Path(trial.path).parent) for trial in trials if trial.path), "")
