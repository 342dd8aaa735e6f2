"""What counts as diverged, and how a run that diverges goes on from its last good state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

# A validation loss of so many times the least so far is finite, but nothing to go back to.
EXPLODING = 10.0
# So many epochs, at most, are lost by going back: all are trained anew before the next report, which a budget and a
# scheduler wait for. A loss that exploded for so long and still grows has diverged, though it is finite; one that does
# not grow is what the run has come to.
MOST_LOST = 3
# Share of the weights' learning rate that a restart keeps.
RESTART_LR = 0.5


def why_diverged(*, epoch: int, train_loss: float, val_loss: float, values: Mapping[str, float]) -> str:
    """What is not finite any more; empty where all is well.

    Args:
        epoch: The epoch that has been trained, counted from 1.
        train_loss: Its training loss.
        val_loss: The validation loss after it.
        values: The hyperparameters after it.
    """
    losses = (("training", train_loss), ("validation", val_loss))
    reasons = [f"the {label} loss became {loss} in epoch {epoch}" for label, loss in losses if not math.isfinite(loss)]
    lost = [name for name, value in values.items() if not math.isfinite(value)]
    if lost:
        reasons.append(f"not finite any more: {', '.join(lost)}")
    return "; ".join(reasons)


class Restarts:
    """How often a run went back, and the state to which it would go back now.

    Args:
        allowed: Number of times that it may go back.

    Attributes:
        done: Number of times that it went back.
        last_good: The state to go back to; None where that is the present one: so a checkpoint rarely holds two.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.done = 0
        self.last_good: dict[str, Any] | None = None
        self._largest_good_loss = math.inf
        self._high: list[float] = []  # the losses since the state to go back to, all of them exploding

    @property
    def lr_factor(self) -> float:
        """The share of the learning rate of the weights that is left."""
        return RESTART_LR**self.done

    def state_before(self, present: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The state to go back to should the next epoch diverge; None if the run may not go back again.

        Args:
            present: A function that gives the present state; it is copied, for training writes into it.
        """
        if self.done >= self.allowed:
            return None
        return self.last_good or copy.deepcopy(present())

    def went_well(self, before: dict[str, Any] | None, val_loss: float, *, epoch: int) -> str:
        """Note an epoch whose loss is finite; if it explodes, the state before it stays the one to go back to.

        Args:
            before: What `state_before` gave.
            val_loss: The validation loss after the epoch.
            epoch: The epochs that have been completed, this one included.

        Returns:
            Why the run has to go back all the same; empty where it need not.
        """
        self._largest_good_loss = min(self._largest_good_loss, EXPLODING * abs(val_loss))
        if before is None or val_loss <= self._largest_good_loss:
            self.last_good, self._high = None, []
            return ""
        self.last_good, self._high = before, [*self._high, val_loss]
        if len(self._high) < MOST_LOST:
            return ""
        grows = all(earlier < later for earlier, later in pairwise(self._high))
        self.last_good, self._high = None, []
        if not grows:
            return ""
        return f"the validation loss grew and grew, to {val_loss:.3g} in epoch {epoch}"

    def went_back(self, reason: str, epoch: int) -> str:
        """Count a restart, from the end of an epoch; gives what a user is told."""
        self.done += 1
        self.last_good, self._high = None, []
        return f"{reason}; went back to the end of epoch {epoch}, with {RESTART_LR:g} of the learning rate"

    def state_dict(self) -> dict[str, Any]:
        return {
            "restarts": self.done,
            "largest_good_loss": self._largest_good_loss,
            "last_good": self.last_good,
            "high_losses": self._high,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done, self.last_good = state["restarts"], state["last_good"]
        self._largest_good_loss = state["largest_good_loss"]
        self._high = list(state.get("high_losses", []))  # earlier versions kept none
