"""The buffer of a run's hyperparameter schedule: one row for each hyperparameter at each change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tune_stn.space.search_space import SearchSpace
from tune_stn.space.tunable import Constants, Tunable

Source = Literal["start", "stn", "explore", "exploit", "fixed", "replay"]
SOURCES: tuple[Source, ...] = ("start", "stn", "explore", "exploit", "fixed", "replay")


@dataclass
class ScheduleBuffer:
    """Raw coordinates and scales at each recorded step; kept on their device until somebody looks.

    Attributes:
        steps, epochs, sources: one entry for each record.
        raw, scale: shape `(n,)` each, one for each record; for constants the values themselves and zeros.
    """

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    raw: list[Tensor] = field(default_factory=list)
    scale: list[Tensor] = field(default_factory=list)

    def record(self, hyper: Tunable | Constants, *, step: int, epoch: int, source: Source) -> None:
        """Add the present state. No value is read from the device here, so a GPU need not stop."""
        raw, scale = (
            (hyper.raw, hyper.scale()) if isinstance(hyper, Tunable) else (hyper.value, hyper.value * 0)
        )
        self.steps.append(step)
        self.epochs.append(epoch)
        self.sources.append(source)
        self.raw.append(raw.detach().clone())
        self.scale.append(scale.detach())

    def rows(self, space: SearchSpace, *, tuned: bool) -> list[dict[str, Any]]:
        """Long form: `step, epoch, hp, value, raw, scale, source`; raw and scale are None for constants."""
        if not self.steps:
            return []
        raw, scale = torch.stack(self.raw).cpu(), torch.stack(self.scale).cpu()
        rows = []
        for column, (name, domain) in enumerate(space.items()):
            values = domain.transform(raw[:, column]) if tuned else raw[:, column]
            for i, value in enumerate(values.tolist()):
                rows.append(
                    {
                        "step": self.steps[i],
                        "epoch": self.epochs[i],
                        "hp": name,
                        "value": value,
                        "raw": raw[i, column].item() if tuned else None,
                        "scale": scale[i, column].item() if tuned else None,
                        "source": self.sources[i],
                    }
                )
        rows.sort(key=lambda row: row["step"])  # stable: hyperparameters stay in the order of the space
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "epochs": list(self.epochs),
            "sources": list(self.sources),
            "raw": torch.stack(self.raw).cpu() if self.raw else torch.empty(0),
            "scale": torch.stack(self.scale).cpu() if self.scale else torch.empty(0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])
        self.sources = list(state["sources"])
        self.raw, self.scale = list(state["raw"].unbind()), list(state["scale"].unbind())
