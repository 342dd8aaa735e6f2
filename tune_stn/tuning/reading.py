"""What is in a result and a config of somebody's trainable, under the names of the tables."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

COLUMNS = ("train_loss", "test_loss", "step", "cost", "device_time_s")
# Of a process, which a trial that goes on elsewhere does not share.
PEAK_MEMORY = "peak_memory_bytes"
# Of columns that add up: what one report adds, for a trainable that says so itself.
INCREMENTS = {"cost": "cost_increment", "device_time_s": "device_time_increment_s"}
# What Tune adds to every result: where and when it was made, its own counts, and the config.
_TUNES_OWN = frozenset(
    [
        "checkpoint_dir_name",
        "config",
        "date",
        "done",
        "episodes_total",
        "experiment_tag",
        "hostname",
        "iterations_since_restore",
        "node_ip",
        "pid",
        "should_checkpoint",
        "time_since_restore",
        "time_this_iter_s",
        "time_total_s",
        "timestamp",
        "timesteps_since_restore",
        "timesteps_total",
        "training_iteration",
        "trial_id",
        "warmup_time",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a trainable's results; the arguments of `Recorder` of the same names.

    Raises:
        ValueError: a mode or column that there is not.
    """

    metric: str = "val_loss"
    mode: str = "min"
    columns: Mapping[str, str] = field(default_factory=dict)
    hps: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode {self.mode!r}: accepted is 'min' or 'max'")
        if unknown := sorted(set(self.columns) - set(COLUMNS)):
            advice = "val_loss is the metric" if "val_loss" in unknown else "other numbers keep the names they have"
            raise ValueError(f"columns {', '.join(unknown)}: accepted are {', '.join(COLUMNS)}; {advice}")

    def losses(self, found: Mapping[str, float]) -> dict[str, float]:
        """The three losses among the numbers of a result, NaN where one is missing; of `max`, with the sign turned."""
        val_loss = found.get(self.metric, math.nan)
        others = {name: found.get(self.columns.get(name, name), math.nan) for name in ("train_loss", "test_loss")}
        return {"val_loss": -val_loss if self.mode == "max" else val_loss, **others}

    def step(self, found: Mapping[str, float], otherwise: int) -> int:
        steps = (found[key] for key in (self.columns.get("step", "step"), "timesteps_total") if key in found)
        return next((int(step) for step in steps if float(step).is_integer()), otherwise)

    def increment(self, column: str, found: Mapping[str, float], before: Mapping[str, float]) -> float:
        """What a result adds to `cost` or `device_time_s`.

        Args:
            column: which.
            found: numbers of the result.
            before: those of the trial's result before it or, where it goes on from a checkpoint, of the result that
                was saved with that.
        """
        if INCREMENTS[column] in found:
            return found[INCREMENTS[column]]
        key = self.columns.get(column, column)
        if key not in found:
            return 1.0 if column == "cost" else math.nan
        known = before.get(key, 0.0)
        return found[key] - known if found[key] >= known else found[key]  # else its count began anew

    def hyperparameters(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Those in a config."""
        values = {name.removeprefix("hp/"): value for name, value in leaves(config).items()}
        return {name: value for name, value in values.items() if self.hps is None or name in self.hps}

    def hp_columns(self, found: Mapping[str, float], config: Mapping[str, float]) -> dict[str, float]:
        """`hp/<name>`: a trainable that reports any has named all; else those in its config.

        Args:
            found: numbers of the result.
            config: hyperparameters in the trial's config.
        """
        reported = {name: value for name, value in found.items() if name.startswith("hp/")}
        if self.hps is None and reported:
            return reported
        wanted = {f"hp/{name}": value for name, value in config.items()}
        return wanted | {name: reported[name] for name in reported if name.removeprefix("hp/") in (self.hps or ())}


def result_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """All numbers in a result, Tune's own among them, but for those of the config that it comes with."""
    return leaves({name: value for name, value in result.items() if name != "config"})


def reported_numbers(found: Mapping[str, float]) -> dict[str, float]:
    """Of a result's numbers, those that the trainable reported about its training."""
    about_itself = {*_TUNES_OWN, *INCREMENTS.values(), PEAK_MEMORY}
    return {name: found[name] for name in found if name not in about_itself}


def describes_itself(result: Mapping[str, Any]) -> bool:
    """Whether a trainable knows of its copies, restorations and end, as `STNTrainable` does, and reports them."""
    return isinstance(result.get("segment"), str) and "parent_trial_id" in result


def leaves(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a nested mapping by their path (`optimizer/lr`); words, switches, lists and objects are none."""
    found: dict[str, float] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}/")
        elif isinstance(value, bool):
            pass
        elif isinstance(value, numbers.Real):
            found[f"{prefix}{key}"] = int(value) if isinstance(value, numbers.Integral) else float(value)
    return found
