"""Learning-rate schedules that torch lacks; named in `Training.lr_schedule` as torch's own are."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau


class NonMonotone(ReduceLROnPlateau):
    """Multiplies the learning rate by `factor` whenever the validation loss has not improved on the best of all but the
    last `window` epochs: the rule of the AWD-LSTM (arXiv 1708.02182, section 5) and of the STN authors' code.

    Args:
        optimizer: Optimizer whose learning rates are changed.
        factor: Factor of the rates, above 0 and below 1.
        window: Number of the newest epochs that a loss is not compared with.
        min_lr: Smallest learning rate: no rate gets smaller.

    Raises:
        ValueError: a factor or window that is not accepted.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, factor: float = 0.25, window: int = 5, min_lr: float = 0.0
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"factor={factor!r}: accepted is a number above 0 and below 1")
        if window < 1:
            raise ValueError(f"window={window!r}: accepted is an integer of 1 or more")
        super().__init__(optimizer, factor=factor, min_lr=min_lr, eps=0.0)  # torch would stop cutting near 1e-8
        self.window = window
        self.losses: tuple[float, ...] = ()  # no list: states are shared with whoever saves or loads them

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take the validation loss of an epoch."""
        loss = float(metrics)
        earlier = self.losses[: -self.window]
        self.losses += (loss,)
        self.last_epoch += 1
        if earlier and not loss < min(earlier):
            self._reduce_lr(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
