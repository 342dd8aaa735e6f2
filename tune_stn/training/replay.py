"""A run whose constants follow a schedule."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tune_stn.space.tunable import Constants
from tune_stn.training.schedule import Schedule
from tune_stn.training.schedule_buffer import ScheduleBuffer


class Replay:
    """Sets the constants of a run to what a schedule says, step by step, and records them where that is new.

    Args:
        schedule: The schedule, of some or all hyperparameters; it was checked against their space.
        hyper: The constants of the run.
        values: The values of hyperparameters that the schedule does not name.
        records: The run's own schedule, which gets a record of source "replay" at each change.
    """

    def __init__(
        self, schedule: Schedule, hyper: Constants, *, values: Mapping[str, float], records: ScheduleBuffer
    ) -> None:
        self.schedule = schedule
        self.hyper = hyper
        self.records = records
        self._values = dict(values)

    def follow(self, step: int, epoch: int, *, epoch_began: bool) -> None:
        """Set the values for the training step to come, and record them if they are new.

        A record has the epoch of the step before it, as one has that follows a hyper-step: so the records of a replayed
        STN run are those of that run.

        Args:
            step: The training steps done so far.
            epoch: The epochs done so far.
            epoch_began: Whether the step to come is the first of its epoch.
        """
        now = self._at(step, epoch)
        self.hyper.value.copy_(torch.tensor(now))
        before = epoch - (epoch_began and epoch > 0)
        if not self.records.steps or (step > 0 and now != self._at(step - 1, before)):
            self.records.record(self.hyper, step=step, epoch=before, source="replay")

    def _at(self, step: int, epoch: int) -> list[float]:
        given = self._values | self.schedule.at(step if self.schedule.unit == "step" else epoch)
        # Between two values of an integer, an interpolation is none.
        return [domain.nearest(given[name]) for name, domain in self.hyper.space.items()]
