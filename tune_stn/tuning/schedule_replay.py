"""Replay of a hyperparameter schedule on a trainable that knows nothing of schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from tune_stn.training.schedule import Schedule

ITERATION = "training_iteration"


class ScheduleReplay(FIFOScheduler):
    """Gives every trial the values of a schedule, as its config, at the times of the schedule.

    Where the values of the next interval differ from a trial's config, the trial saves a checkpoint, is paused, and
    goes on from there with the new config, as under population-based training; nothing happens at other reports. The
    values between two reports are those of the schedule at the earlier one (before the first report: at 0).

    What a trial's config has to be follows from the schedule and the time of its checkpoint alone. So there is no state
    to lose: a trial that fails, or comes back through `Tuner.restore`, gets the values of the time it goes on from, and
    any number of trials (repetitions over seeds, say) follow the schedule side by side.

    A change costs a checkpoint and, unless Tune can reuse the process (`reuse_actors` and a trial waiting for it), the
    start of a new one: replay a schedule that changes at every step or epoch inside the training loop, where you can.
    The trainable has to save what it needs: a class in `save_checkpoint`, a function by a checkpoint with each
    `tune.report` (and it begins from `tune.get_checkpoint()`). What it loads must not bring back the values of before:
    the state of a torch optimizer holds its learning rate and weight decay.

    Args:
        schedule: The schedule to replay; its values arrive as floats, but whole ones as int where the hyperparameter is
            one of `schedule.integers`, or the config has an int in its place.
        time_attr: Key of a report that counts in the schedule's unit. The default counts reports: epochs, for a
            trainable that reports each epoch.
        key: Where in the config the values go: `""` for `config[name]`, `"hp"` for `config["hp"][name]`, `"model/hp"`
            for `config["model"]["hp"][name]`; a name "a/b" goes to `["a"]["b"]` there. Other entries stay.

    Raises:
        ValueError: the schedule counts steps, and `time_attr` names no counter of steps. Later, when a trial is added
            or reports: the trainable saves no checkpoint where the schedule changes, a report lacks `time_attr`, or
            the config has something else at `key`.

    Example:
        >>> schedule = Schedule.from_parquet("study/schedule.parquet", trial_id="0a1b2_00000").per_epoch()
        >>> tuner = tune.Tuner(
        ...     theirs,
        ...     param_space={"seed": tune.grid_search([0, 1, 2])},
        ...     tune_config=tune.TuneConfig(scheduler=ScheduleReplay(schedule)),
        ... )
    """

    def __init__(self, schedule: Schedule, *, time_attr: str = ITERATION, key: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.changes = len(schedule.changes()) - 1
        if self.changes and schedule.unit == "step" and time_attr == ITERATION:
            raise ValueError(
                f"the schedule counts steps, and {ITERATION} counts reports: give time_attr= the name of the step "
                "counter that your trainable reports, or replay schedule.per_epoch()"
            )
        self.schedule = schedule
        self.time_attr = time_attr
        self.paths = {name: f"{key}/{name}".removeprefix("/").split("/") for name in schedule.names}

    @property
    def supports_buffered_results(self) -> bool:
        """False: a change cannot wait for the reports after it."""
        return False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Of a new trial, of one that failed and will go on from its checkpoint, and of one that was restored."""
        if trial.is_finished():
            return
        if self.changes and not _saves(trial.get_trainable_cls()):
            raise ValueError(
                f"{trial.trainable_name} has no save_checkpoint, so its config cannot be changed on the way: add "
                "save_checkpoint and load_checkpoint to it, or follow the schedule inside its step"
            )
        self._set_values(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        values = self.schedule.at(self._time(result))
        same = all(_entry(trial.config, path) == values[name] for name, path in self.paths.items())
        return str(self.CONTINUE if same else self.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        trial = super().choose_trial_to_run(tune_controller)
        if trial is not None and trial.status == trial.PAUSED:
            reported = self._time(trial.last_result)
            if self._checkpoint_time(trial) != reported:
                raise ValueError(
                    f"{trial} saved no checkpoint with its report at {self.time_attr} {reported}, where the schedule "
                    "changes: pass a checkpoint to tune.report there (simplest: at every report)"
                )
            self._set_values(trial)
        return trial

    def debug_string(self) -> str:
        return f"Replaying {self.changes} change(s) of {', '.join(self.paths)} by {self.time_attr}"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: there is no state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: there is no state."""

    def _set_values(self, trial: Any) -> None:
        """Give a trial that does not run the values of the time it will go on from."""
        values, config = self.schedule.at(self._checkpoint_time(trial)), trial.config
        for name, path in self.paths.items():
            config = _with_entry(config, path, values[name])
        trial.set_config(config)

    def _checkpoint_time(self, trial: Any) -> float:
        # No public name of Ray tells what a trial had reported when it saved; this attribute of `Trial` is what Tune
        # itself restores the trial from.
        saved = trial.latest_checkpoint_result
        # One that the user gave to begin from (`tune.run(restore=...)`) comes without metrics: all counts begin at 0.
        return self._time(saved.metrics) if saved is not None and saved.metrics else 0

    def _time(self, result: Mapping[str, Any]) -> float:
        if self.time_attr not in result:
            raise ValueError(
                f"a report has no {self.time_attr!r}, by which the schedule is replayed; it has {', '.join(result)}"
            )
        time: float = result[self.time_attr]
        return time


def _saves(trainable: type[tune.Trainable]) -> bool:
    """Whether a class (a function is wrapped in one that does) can save at all."""
    return trainable.save_checkpoint is not tune.Trainable.save_checkpoint


def _entry(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        config = config[name]
    return config


def _with_entry(config: Mapping[str, Any], path: Sequence[str], value: float) -> dict[str, Any]:
    """A copy of a config with a value at a path; the config itself may be shared with other trials."""
    if not isinstance(config, Mapping):
        raise ValueError(f"the config has {config!r} where values of the schedule belong; give another key=")
    first, *rest = path
    if rest:
        return {**config, first: _with_entry(config.get(first, {}), rest, value)}
    before = config.get(first)
    whole = isinstance(before, int) and not isinstance(before, bool) and float(value).is_integer()
    return {**config, first: int(value) if whole else value}  # a width of 8.0 would be none
