"""Trials that take over the process of another one, and what becomes of them where that process is dead."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial


class HandOver:
    """Has trials start in another process if the one that they are to take over dies first.

    With `reuse_actors`, Ray Tune hears twice of such a death, at once: first it has the trial start again, then it
    gives the trial up, as it is not running. Nor would it ever start, for Tune holds it for one that is being handed
    over. So the trial is paused between the two, which Tune leaves alone, and pending again afterwards. A scheduler
    calls these methods in its own of the same names.
    """

    def __init__(self) -> None:
        self._dead: dict[Trial, Any] = {}  # trial -> Tune's controller

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if trial in tune_controller._resetting_trials:
            tune_controller._resetting_trials.remove(trial)
            self._dead[trial] = tune_controller

    def on_trial_add(self, trial: Trial) -> None:
        if trial in self._dead:
            self._dead[trial]._set_trial_status(trial, Trial.PAUSED)

    def choose_trial_to_run(self) -> None:
        while self._dead:
            trial, tune_controller = self._dead.popitem()
            tune_controller._set_trial_status(trial, Trial.PENDING)
