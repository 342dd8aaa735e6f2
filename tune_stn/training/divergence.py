"""What counts as diverged, and how a run that diverges goes on from its last good state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

# A validation loss of so many times the least so far is finite, but nothing to go back to.
EXPLODING = 10.0
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
        allowed: How often it may.

    Attributes:
        done: How often it did.
        last_good: The state to go back to; None where that is the present one: so a checkpoint rarely holds two.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.done = 0
        self.last_good: dict[str, Any] | None = None
        self._largest_good_loss = math.inf

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

    def went_well(self, before: dict[str, Any] | None, val_loss: float) -> None:
        """Note an epoch that did not diverge; if its loss explodes, the state before it stays the one to go back to."""
        self._largest_good_loss = min(self._largest_good_loss, EXPLODING * abs(val_loss))
        self.last_good = before if val_loss > self._largest_good_loss else None

    def went_back(self, reason: str, epoch: int) -> str:
        """Count a restart, from the end of an epoch; gives what a user is told."""
        self.done += 1
        self.last_good = None
        return f"{reason}; went back to the end of epoch {epoch}, with {RESTART_LR:g} of the learning rate"

    def state_dict(self) -> dict[str, Any]:
        return {
            "restarts": self.done,
            "largest_good_loss": self._largest_good_loss,
            "last_good": self.last_good,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done, self.last_good = state["restarts"], state["last_good"]
        self._largest_good_loss = state["largest_good_loss"]
