"""A Ray Tune scheduler for a population of self-tuning trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tune_stn.training.rules import get_rule
from tune_stn.tuning.trainable import POPULATION

UNCOMPARED: Mapping[str, Any] = {"round": 0, "stopped": [], "exploits": {}}


class STNScheduler(TrialScheduler):
    """Compares self-tuning trials at equal cost; the worst go on from where the best are, or are stopped.

    A trial that has spent the next multiple of `interval` saves a checkpoint and waits until every other one has spent
    as much, or has ended. Then the losses that they have there are compared. Those in the lower quantile take over from
    those in the upper one: weights, responses, hyperparameters and optimizers, as in population-based training
    (Jaderberg et al. 2017, arXiv 1711.09846). But no hyperparameter is mutated at random: the perturbation scales are
    widened, so that the gradient explores, and noise and data order are the trial's own from there on. A trial's own
    `cost` and schedule go on; its epoch is that of the one it took over from, so it ends where all end. A trial that
    diverges ends, and no other trial takes over from it.

    As everybody waits, results depend neither on the machine's timing nor on the number of slots, of which one is
    enough. A last trial that is left alone no longer waits. Trials that are added later are compared from the
    milestone on that the others are at. Waiting has its price: Tune ends the process of a paused trial when no other
    needs one, so that a comparison costs each slot the start of a new one (2 s and more).

    Tune saves no scheduler, so this one has no memory. What a comparison came to is written into the config of every
    trial, `STNTrainable` carries it out when Tune brings the trial back, and notes in its checkpoint that it did; a
    trial's loss and cost are those that Tune keeps with its newest checkpoint. So neither a failing trial nor
    `Tuner.restore` loses anything or does it twice. Let Tune keep the checkpoints of one interval, or a trial that
    fails before its first own one may take over from a newer state.

    Args:
        time_attr: Key of a report that holds what the trial itself has spent.
        metric: Key of the loss to compare, which is not the best so far: that would reward a trial for its past.
            Default that of `tune.TuneConfig`, else `val_loss`.
        mode: "min" or "max".
        interval: What a trial spends between comparisons, in `time_attr`: several epochs' worth, for it is epochs that
            are reported.
        grace_period: What a trial spends before its first comparison, in `time_attr`.
        quantile_fraction: Share of trials that lose, and of those they take over from: above 0, at most 0.5. Rounded
            up, but never more than half.
        on_loss: "restart" from a winner, or "stop".
        widen: Factor of the perturbation scales at a take-over, 1 or more; none gets wider than its start value times
            this.
        budget: What all trials together may spend, or None. While those alive would spend more until their end, by
            their average so far, losers are stopped whatever `on_loss`.
        epochs: Length of a trial in epochs; needed with `budget`.

    Raises:
        ValueError: a setting is outside what it accepts.

    Example:
        >>> tune.Tuner(
        ...     STNTrainable,
        ...     param_space={"task": "digits-mlp", "hp": task.space.to_tune()},
        ...     tune_config=tune.TuneConfig(scheduler=STNScheduler(interval=20), num_samples=8),
        ... )
    """

    def __init__(
        self,
        *,
        time_attr: str = "cost",
        metric: str | None = None,
        mode: Literal["min", "max"] | None = None,
        interval: float = 20.0,
        grace_period: float = 0.0,
        quantile_fraction: float = 0.25,
        on_loss: Literal["restart", "stop"] = "restart",
        widen: float = 2.0,
        budget: float | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not 0 < interval < math.inf:
            raise ValueError(f"interval={interval!r}: accepted is a finite number above 0, in units of time_attr")
        if not 0 <= grace_period < math.inf:
            raise ValueError(f"grace_period={grace_period!r}: accepted is a finite number of 0 or more")
        if not 0 < quantile_fraction <= 0.5:
            raise ValueError(f"quantile_fraction={quantile_fraction!r}: accepted is a number above 0, at most 0.5")
        if on_loss not in ("restart", "stop"):
            raise ValueError(f"on_loss={on_loss!r}: accepted are 'restart' and 'stop'")
        if not 1 <= widen < math.inf:
            raise ValueError(f"widen={widen!r}: accepted is a finite number of 1 or more")
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode={mode!r}: accepted are 'min' and 'max'")
        if (budget is None) != (epochs is None):
            raise ValueError(f"budget={budget!r} with epochs={epochs!r}: give both, or neither")
        self._metric, self._mode = metric, mode
        self.time_attr = time_attr
        self.interval = interval
        self.grace_period = grace_period
        self.quantile_fraction = quantile_fraction
        self.on_loss = on_loss
        self.widen = widen
        self.budget = budget
        self.epochs = epochs

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take metric and mode of `tune.TuneConfig`; False where both are given here already."""
        if (metric and self._metric) or (mode and self._mode):
            return False
        self._metric = metric or self._metric or "val_loss"
        self._mode = mode or self._mode or "min"  # type: ignore[assignment]
        return True

    # What Tune calls -------------------------------------------------------------------------------------------------

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Enrol a trial. Tune calls this again after each failure and at a restore: then there is nothing to do."""
        algorithm = trial.config.get("algorithm", "stn")
        if self.on_loss == "restart" and not get_rule(algorithm).tunes:
            raise ValueError(
                f"STNScheduler restarts losers with the hyperparameters of winners, but algorithm {algorithm!r} tunes "
                "none: use on_loss='stop', or population-based training"
            )
        reported = trial.last_result.get("config", {}) if trial.has_reported_at_least_once else {}
        unknown = POPULATION in reported and POPULATION not in trial.config
        if unknown or _record(reported)["round"] > _record(trial.config)["round"]:
            # Tune restores the first config of a trial where that holds objects (a Task): reports have the latest.
            # A trial is then where its own report says, although others may have come further since.
            trial.set_config(reported)
        if POPULATION not in trial.config:
            newest = _newest(tune_controller.get_trials())
            trial.set_config({**trial.config, POPULATION: {**UNCOMPARED, "round": newest["round"]}})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pause a trial that has come to the next comparison, unless it is the last one alive."""
        if self.time_attr not in result:
            raise ValueError(f"a report has no {self.time_attr!r} (time_attr): it has {', '.join(sorted(result))}")
        trials = tune_controller.get_trials()
        alone = all(other is trial or other.is_finished() for other in trials)
        due = result[self.time_attr] >= self._next_milestone(_newest(trials))
        return TrialScheduler.PAUSE if due and not alone else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """A trial that need not wait, or None; if all wait, they are compared first."""
        trials = tune_controller.get_trials()
        record = _newest(trials)
        self._settle(tune_controller, record)  # after a restore, Tune may know of some trials' configs only
        for trial in _alive(trials):
            if trial.status == Trial.PENDING and self._waits(trial, record):
                # Restored at a milestone. Tune lets schedulers call this one, and runs any trial that is pending.
                tune_controller._set_trial_status(trial, Trial.PAUSED)
        alive = _alive(trials)
        if alive and all(trial.status == Trial.PAUSED and self._waits(trial, record) for trial in alive):
            record = self._compare(trials, record)
            self._settle(tune_controller, record)
        ready = [t for t in _alive(trials) if t.status in (Trial.PENDING, Trial.PAUSED) and not self._waits(t, record)]
        # Paused ones first: those that are pending, Tune starts by itself, and at the same time.
        return min(ready, key=lambda trial: trial.status != Trial.PAUSED, default=None)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Does nothing: no trial waits for one that has ended."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Does nothing: no trial waits for one that has ended."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Does nothing: no trial waits for one that has ended."""

    def debug_string(self) -> str:
        return f"STNScheduler: {self._metric} compared every {self.interval:g} of {self.time_attr}"

    # Comparisons -----------------------------------------------------------------------------------------------------

    def _next_milestone(self, record: Mapping[str, Any]) -> float:
        """What trials may spend before they wait for the next comparison."""
        first = math.ceil(self.grace_period / self.interval)
        return self.interval * float(max(record["round"] + 1, first))

    def _waits(self, trial: Any, record: Mapping[str, Any]) -> bool:
        return self._spent(trial) >= self._next_milestone(record)

    def _spent(self, trial: Any) -> float:
        return float(_checkpointed(trial).get(self.time_attr, 0.0))

    def _compare(self, trials: Sequence[Any], before: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a comparison of all trials alive, which wait.

        Its keys: `round`, the last milestone that all have passed, in intervals; `stopped`, trial ids, earlier ones
        included; `exploits`, by the loser's trial id: whose checkpoint it is to take over.
        """
        alive = {trial.trial_id: trial for trial in _alive(trials)}
        least = min(self._spent(trial) for trial in alive.values())
        reached = max(before["round"] + 1, math.floor(least / self.interval))
        sign = 1.0 if self._mode == "min" else -1.0
        losses = {  # one that has spent a whole interval more has had more time to become good
            name: sign * float(_checkpointed(trial)[str(self._metric)])
            for name, trial in sorted(alive.items())
            if self._spent(trial) < (reached + 1) * self.interval
        }
        pairs = exploits(losses, self.quantile_fraction)
        stopped, taken_over = list(before["stopped"]), {}
        if self.on_loss == "stop" or self._overspends(trials):
            stopped += pairs
        else:
            for place, (loser, winner) in enumerate(pairs.items()):
                taken_over[loser] = {
                    "trial_id": winner,
                    # Within the experiment, which may be on any storage, and may have been moved before a restore.
                    "checkpoint": "/".join(PurePosixPath(alive[winner].checkpoint.path).parts[-2:]),
                    "branch": f"{reached}.{place}",
                    "widen": self.widen,
                }
        return {"round": reached, "stopped": stopped, "exploits": taken_over}

    def _overspends(self, trials: Sequence[Any]) -> bool:
        """Whether the trials alive would spend more than the budget until their end."""
        if self.budget is None or self.epochs is None:
            return False
        total = 0.0
        for trial in trials:
            if not trial.is_finished():
                spent = self._spent(trial)
                total += spent * max(1.0, self.epochs / max(1, _checkpointed(trial)["epoch"]))
            elif trial.has_reported_at_least_once:
                total += trial.last_result.get(self.time_attr, 0.0)
        return total > self.budget

    def _settle(self, tune_controller: Any, record: Mapping[str, Any]) -> None:
        """Write a record into the configs that do not have it yet, and stop those it says are stopped."""
        trials = {trial.trial_id: trial for trial in tune_controller.get_trials()}
        for trial in _alive(trials.values()):
            if _record(trial.config)["round"] < record["round"]:
                exploit = record["exploits"].get(trial.trial_id)
                # What is taken over fits the winner's settings: width, learning rate, whatever else is searched.
                origin = trials[exploit["trial_id"]] if exploit else trial
                trial.set_config({**origin.config, POPULATION: record})
                if trial.trial_id in record["stopped"]:
                    tune_controller.stop_trial(trial)


def exploits(losses: Mapping[str, float], quantile_fraction: float) -> dict[str, str]:
    """Loser -> winner by truncation selection: the worst takes over from the best, the second worst from the next.

    Losers are the lower quantile (rounded up, at most half) and whoever has no finite loss; winners are as many from
    the upper end, with a finite loss. Empty where there is no winner. Ties go by the order of `losses`.
    """
    ranked = sorted(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf)
    finite = sum(map(math.isfinite, losses.values()))
    share = min(math.ceil(len(ranked) * quantile_fraction), len(ranked) // 2)
    kept = min(len(ranked) - share, finite)
    winners = ranked[: min(max(share, 1), kept)]
    losers = ranked[kept:][::-1] if winners else []
    return {loser: winners[place % len(winners)] for place, loser in enumerate(losers)}


def _alive(trials: Any) -> list[Any]:
    return [trial for trial in trials if not trial.is_finished()]


def _record(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get(POPULATION, UNCOMPARED)  # type: ignore[no-any-return]


def _newest(trials: Sequence[Any]) -> Mapping[str, Any]:
    """The last comparison that any trial's config tells of."""
    return max((_record(trial.config) for trial in trials), key=lambda record: record["round"], default=UNCOMPARED)


def _checkpointed(trial: Any) -> Mapping[str, Any]:
    """The report at a trial's newest checkpoint, from where it goes on when Tune brings it back."""
    newest = trial.latest_checkpoint_result
    return newest.metrics if newest else {}
