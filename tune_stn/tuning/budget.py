"""The budget of a run: what its recorder has counted ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from tune_stn.tuning.recording.recorder import Recorder

# A run in which nearly every trial fails would never spend its budget: it is given up after this many failures
# without a success in between.
FAILURES_IN_A_ROW = 3


class BudgetStopper(tune.Stopper):
    """Ends a run when its recorder has counted the budget, or when one trial after the other fails.

    Args:
        recorder: Recorder of the run.
        budget: Cost that the run may spend, in plain-epoch equivalents.
        watch: Function called as often as Tune asks whether to stop; it may raise to end the run. Default nothing.
        save_last: Whether trials cut off by the budget save a last checkpoint first: schedules and models are read from
            there.
    """

    _newest: BudgetStopper

    def __init__(
        self, recorder: Recorder, budget: float, *, save_last: bool = False, watch: Callable[[], None] | None = None
    ) -> None:
        self.recorder = recorder
        self.budget = budget
        self.save_last = save_last
        self.watch = watch
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
        if self.watch is not None:
            self.watch()
        return self.hopeless or (self.spent and not (self.save_last and self.recorder.unsaved))

    @property
    def spent(self) -> bool:
        return self.recorder.cost_total >= self.budget

    @property
    def hopeless(self) -> bool:
        return self.recorder.failures_in_a_row >= FAILURES_IN_A_ROW
