"""The buffer of a run's hyperparameter schedule: one row for each hyperparameter at each change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from tune_stn.files import whole_file
from tune_stn.space.search_space import SearchSpace
from tune_stn.space.tunable import Constants, Tunable
from tune_stn.training.tables import write_parquet

Source = Literal["start", "stn", "explore", "exploit", "fixed", "replay"]
SOURCES: tuple[Source, ...] = ("start", "stn", "explore", "exploit", "fixed", "replay")
SCHEDULE_FILE = "schedule.parquet"
UNTIL, TRIAL = b"tune_stn.until_step", b"tune_stn.trial_id"


@dataclass
class ScheduleBuffer:
    """Raw coordinates and scales at each recorded step; kept on their device until they are read.

    Attributes:
        steps, epochs, sources: One entry for each record.
        raw, scale: One tensor of shape `(n,)` for each record; for constants the values themselves and zeros.
    """

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    raw: list[Tensor] = field(default_factory=list)
    scale: list[Tensor] = field(default_factory=list)

    def record(self, hyper: Tunable | Constants, *, step: int, epoch: int, source: Source) -> None:
        """Add the present state. No value is read from the device here, so a GPU need not stop."""
        raw, scale = (hyper.raw, hyper.scale()) if isinstance(hyper, Tunable) else (hyper.value, hyper.value * 0)
        self.steps.append(step)
        self.epochs.append(epoch)
        self.sources.append(source)
        self.raw.append(raw.detach().clone())
        self.scale.append(scale.detach())

    def truncate(self, records: int) -> None:
        """Forget all but the first records."""
        for column in (self.steps, self.epochs, self.sources, self.raw, self.scale):
            del column[records:]

    def columns(self, space: SearchSpace, *, tuned: bool) -> dict[str, Any]:
        """Long form, by step and then in the order of the space: equal-length columns
        `step, epoch, hp, value, raw, scale, source`; raw and scale are None throughout for constants.
        """
        raw, scale = torch.stack(self.raw).cpu(), torch.stack(self.scale).cpu()
        values = raw
        if tuned:
            values = torch.stack([d.transform(c) for d, c in zip(space.values(), raw.unbind(1), strict=True)], 1)
        per_step, rows = len(space), raw.numel()
        return {
            "step": [step for step in self.steps for _ in range(per_step)],
            "epoch": [epoch for epoch in self.epochs for _ in range(per_step)],
            "hp": list(space) * len(self.steps),
            "value": values.flatten().tolist(),
            "raw": raw.flatten().tolist() if tuned else [None] * rows,
            "scale": scale.flatten().tolist() if tuned else [None] * rows,
            "source": [source for source in self.sources for _ in range(per_step)],
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "epochs": list(self.epochs),
            "sources": list(self.sources),
            "raw": torch.stack(self.raw).cpu() if self.raw else torch.empty(0),
            "scale": torch.stack(self.scale).cpu() if self.scale else torch.empty(0),
        }

    def load_state_dict(self, state: dict[str, Any], *, device: torch.device | str = "cpu") -> None:
        """Go on from a state; `device` is where the records to come will be."""
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])
        self.sources = list(state["sources"])
        self.raw, self.scale = (list(state[name].to(device).unbind()) for name in ("raw", "scale"))


def write_schedule(
    buffer: ScheduleBuffer, space: SearchSpace, *, tuned: bool, until: int, trial_id: str, path: Path
) -> None:
    """Write the long form of a buffer as a Parquet file.

    Args:
        buffer: The schedule of the run.
        space: Search space of the run's task.
        tuned: Whether the run tunes its hyperparameters.
        until: The step up to which nothing else changed; the file's metadata hold it.
        trial_id: The trial whose schedule this is; "" where a part of it is that of a trial which it copied. The file's
            metadata hold it.
        path: Path of the file.
    """
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("epoch", pa.int64()),
            ("hp", pa.string()),
            ("value", pa.float64()),
            ("raw", pa.float64()),
            ("scale", pa.float64()),
            ("source", pa.string()),
        ],
        metadata={UNTIL: str(until), TRIAL: trial_id},
    )
    with whole_file(path) as temporary:
        write_parquet(pa.table(buffer.columns(space, tuned=tuned), schema=schema), temporary)
