"""Keeps the trials of one run to a number of slots, whatever room the cluster has beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, PopulationBasedTraining, TrialScheduler


class InSlots(TrialScheduler):
    """Runs at most some trials of a scheduler at a time: the others are paused, those that have not begun included.

    A searcher can be kept from proposing more trials than there are slots, but not where a scheduler needs all of its
    trials at once, as HyperBand and populations do. Ray Tune would run as many of them as the cluster has room for, so
    that results depended on its size, and runs side by side would take each other's places.

    Tune starts a trial that is pending by itself, and one that is paused only when its scheduler chooses it. So trials
    are paused from the moment that they are added, and this scheduler lets the other one choose when a slot is free. A
    trial that fails is pending again, in its own slot, and so is one whose process dies while it is handed over. But a
    member of a population waits for its turn: it may have failed when that had just ended.

    Args:
        scheduler: Scheduler that decides about the trials.
        slots: Number of trials that may run at a time.
    """

    def __init__(self, scheduler: TrialScheduler, slots: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scheduler = scheduler
        self.slots = slots
        self._is_population = isinstance(scheduler, PopulationBasedTraining)
        self._hand_over = _HandOver()
        self._failed: dict[Trial, Any] = {}  # since it was last added -> Tune's controller
        self._known: dict[Trial, int] = {}  # in the order in which they were added
        self._new: set[Trial] = set()  # of those, trials that have not begun

    @property
    def metric(self) -> Any:
        return self.scheduler.metric

    @property
    def supports_buffered_results(self) -> bool:
        return bool(self.scheduler.supports_buffered_results)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return self.scheduler.set_search_properties(metric, mode, **spec)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if trial not in self._known or not self._is_population:
            self.scheduler.on_trial_add(tune_controller, trial)
        elif trial in self._failed:
            # Told of it anew, a population would compare it too early.
            self._failed.pop(trial)._set_trial_status(trial, Trial.PAUSED)
        if trial not in self._known and trial.status == Trial.PENDING:
            _show(trial, Trial.PAUSED)  # Tune takes it into its books as it is after this call
            self._new.add(trial)
        self._known.setdefault(trial, len(self._known))
        self._hand_over.on_trial_add(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        self._hand_over.choose_trial_to_run()
        if sum(t.status in (Trial.PENDING, Trial.RUNNING) for t in tune_controller.get_live_trials()) >= self.slots:
            return None
        chosen = self._choose_as_pending(tune_controller)
        self._new.discard(chosen)
        return chosen

    def _choose_as_pending(self, tune_controller: Any) -> Trial | None:
        """What the scheduler chooses; HyperBand takes new trials only if they look pending."""
        shown = self._new if isinstance(self.scheduler, HyperBandScheduler) else set()
        for trial in shown:
            _show(trial, Trial.PENDING)
        try:
            in_order: Any = _InOrder(tune_controller, self._known)
            return self.scheduler.choose_trial_to_run(in_order)
        finally:
            for trial in shown:
                _show(trial, Trial.PAUSED)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return str(self.scheduler.on_trial_result(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.scheduler.on_trial_error(tune_controller, trial)
        self._hand_over.on_trial_error(tune_controller, trial)
        if self._is_population:
            self._failed[trial] = tune_controller

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self.scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self.scheduler.on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        return str(self.scheduler.debug_string())


class _HandOver:
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


class _InOrder:
    """Tune's controller, with its trials in the order in which they were added.

    Tune moves a trial that fails to the end, and a population chooses the first of those that are equally far.
    """

    def __init__(self, tune_controller: Any, order: Mapping[Trial, int]) -> None:
        self._tune_controller = tune_controller
        self._order = order

    def get_trials(self) -> list[Trial]:
        return sorted(self._tune_controller.get_trials(), key=self._order.__getitem__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tune_controller, name)


def _show(trial: Trial, status: str) -> None:
    trial.set_status(status)  # type: ignore[no-untyped-call]
