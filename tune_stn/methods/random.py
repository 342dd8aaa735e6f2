"""Random search (Bergstra and Bengio 2012), and the draws that other methods begin with."""

from __future__ import annotations

from typing import Any

from ray.tune.search import BasicVariantGenerator

from tune_stn.methods.method import Context, Plan, start_point


class Draws(BasicVariantGenerator):
    """Random draws from the space after the task's start values, which every method tries first.

    Args:
        context: Context of the run.
        concurrent: Number of trials alive at a time, paused ones included; 0 for no limit.
    """

    def __init__(self, context: Context, *, concurrent: int = 0) -> None:
        points = [{"hp": start_point(context.task)}]
        super().__init__(points_to_evaluate=points, max_concurrent=concurrent, random_state=context.seed)
        self.alive: set[str] = set()

    def next_trial(self) -> Any:
        alive = self.alive.copy()
        trial = super().next_trial()  # type: ignore[no-untyped-call]
        self.alive = alive | ({trial.trial_id} if trial is not None else set())  # also where this was the last draw
        return trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.alive.discard(trial_id)
        super().on_trial_complete(trial_id, result, error)

    def set_finished(self) -> None:
        """Tune calls this when a run is to stop, whatever its trials do."""
        super().set_finished()  # type: ignore[no-untyped-call]
        self.alive = set()

    def is_finished(self) -> bool:
        """Not before all trials are: until then Tune hands a paused trial's process to the next, and ends none."""
        return bool(super().is_finished()) and not self.alive


def plan(context: Context) -> Plan:
    # Diverged trials end early and leave budget for more than the full trials.
    return Plan(
        search_alg=Draws(context, concurrent=context.slots),
        samples=context.samples(1),
        hp=context.task.space.to_tune(),
    )
