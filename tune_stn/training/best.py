"""The best epoch of a run, and the weights and hyperparameters at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tune_stn.nn.model import SelfTuningModel


class BestEpoch:
    """The epoch with the least validation loss so far.

    Args:
        keep: Whether the state of the model at its end is kept.

    Attributes:
        epoch: The epoch; 0 before the first.
        val_loss: Its validation loss.
        reported: The least validation loss of a report: an epoch that is trained anew later has none.
        model: The state of the model, or None where none was kept.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.epoch = 0
        self.val_loss = math.inf
        self.reported = math.inf
        self.model: dict[str, Tensor] | None = None

    def note(self, epoch: int, val_loss: float, model: SelfTuningModel) -> None:
        """Note the end of an epoch."""
        if val_loss < self.val_loss:
            self.epoch, self.val_loss = epoch, val_loss
            if self.keep:
                self.model = {name: value.clone() for name, value in model.state_dict().items()}

    def is_reported(self, val_loss: float) -> bool:
        """Note the validation loss of a report; whether it is less than that of any before."""
        is_less = val_loss < self.reported
        self.reported = min(val_loss, self.reported)
        return is_less

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_epoch": self.epoch,
            "best_val_loss": self.val_loss,
            "least_reported": self.reported,
            "best": self.model,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.val_loss, self.model = state["best_epoch"], state["best_val_loss"], state["best"]
        self.reported = state.get("least_reported", self.val_loss)  # earlier versions kept none
