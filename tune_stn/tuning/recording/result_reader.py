"""Reads the results and the config of any trainable, under the names of the tables."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tune_stn.training.tables import ALLOWED, CHOICE, RESERVED

COLUMNS = ("train_loss", "test_loss", "step", "cost", "device_time_s")
# Of a process, which a trial that goes on elsewhere does not share.
PEAK_MEMORY = "peak_memory_bytes"
# Of columns that add up: what one report adds, for a trainable that says so itself.
INCREMENTS = {"cost": "cost_increment", "device_time_s": "device_time_increment_s"}
REPORTED = "reported/"
"""Before the name of a reported number where the tables have a column of that name with something else in it."""
_LONGEST = 200  # characters of a choice
_INT64 = 2**63
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
class ResultReader:
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
            column: Name of the column, `cost` or `device_time_s`.
            found: Numbers of the result.
            before: Numbers of the trial's result before it or, where it goes on from a checkpoint, of the result that
                was saved with that.

        Returns:
            At least 0; a count that is NaN or infinite adds nothing, nor does the next one.
        """
        if INCREMENTS[column] in found:
            return _spent(found[INCREMENTS[column]])
        key = self.columns.get(column, column)
        if key not in found:
            return 1.0 if column == "cost" else math.nan
        known = before.get(key, 0.0)
        if not math.isfinite(known):
            return 0.0
        return _spent(found[key] if found[key] < known else found[key] - known)  # below, its count began anew

    def hyperparameters(self, config: Mapping[str, Any]) -> dict[str, float]:
        """The hyperparameters in a config that are numbers."""
        return self._chosen(leaves(config))

    def choices(self, config: Mapping[str, Any]) -> dict[str, str]:
        """The other hyperparameters in a config, as text: words, switches, None, lists; objects only if in `hps`."""
        return self._chosen(texts(config, objects=self.hps is not None))

    def _chosen(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """By name, an entry of `config["hp"]` by its own, unless another one has that: then by the path `hp/<name>`."""
        short = {path: path.removeprefix("hp/") for path in found}
        names = {path: path if name != path and name in found else name for path, name in short.items()}
        return {name: found[path] for path, name in names.items() if self.hps is None or name in self.hps}

    def unknown(self, config: Mapping[str, Any], found: Mapping[str, float]) -> list[str]:
        """Which of `hps` are neither in a trial's config nor reported."""
        known = {*self.hyperparameters(config), *self.choices(config)}
        return [name for name in self.hps or () if name not in known and f"hp/{name}" not in found]

    def hp_columns(self, found: Mapping[str, float], config: Mapping[str, float]) -> dict[str, float]:
        """`hp/<name>`: a trainable that reports any has named all; else those in its config.

        Args:
            found: Numbers of the result.
            config: Hyperparameters in the trial's config.
        """
        reported = {name: value for name, value in found.items() if name.startswith("hp/")}
        if self.hps is None and reported:
            return reported
        wanted = {f"hp/{name}": value for name, value in config.items()}
        return wanted | {name: reported[name] for name in reported if name.removeprefix("hp/") in (self.hps or ())}


def result_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """All numbers in a result, Tune's own among them, but for those of the config that it comes with."""
    return leaves({name: value for name, value in result.items() if name != "config"})


def reported_numbers(found: Mapping[str, float], *, describes_itself: bool = False) -> dict[str, float]:
    """Of a result's numbers, those that the trainable reported about its training."""
    about_itself = {*_TUNES_OWN, *((*INCREMENTS.values(), PEAK_MEMORY) if describes_itself else ())}
    return {name: found[name] for name in found if name not in about_itself}


def under_free_names(reported: Mapping[str, float], columns: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Reported numbers by the names that they can have beside the columns that a recorder fills.

    Args:
        reported: Numbers by the trainable's names.
        columns: Columns that the recorder itself fills for the report.

    Returns:
        The numbers, those whose name is taken as `reported/<name>`; and these names. A number that its column holds
        anyway needs no other name.
    """
    free: dict[str, float] = {}
    taken = []
    for name, value in reported.items():
        if name not in RESERVED and name not in columns and not name.startswith(CHOICE):
            free[name] = value
        elif not _same(columns.get(name), value):
            other = REPORTED + name
            while other in reported or other in free:
                other = REPORTED + other
            free[other] = value
            taken.append(name)
    return free, taken


def _same(one: Any, other: float) -> bool:
    if not isinstance(one, int | float):
        return False
    return math.isclose(one, other) or (math.isnan(one) and math.isnan(other))


def describes_itself(result: Mapping[str, Any]) -> bool:
    """Whether a trainable knows of its copies, restorations and end, as `STNTrainable` does, and reports them."""
    words = all(isinstance(result.get(name), str) for name in ("segment", "parent_trial_id", "reason"))
    return words and result.get("status") in ALLOWED["status"] and isinstance(result.get("epoch"), int)


def leaves(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a nested mapping by their path (`optimizer/lr`), also those in arrays and tensors without axes.

    Words, switches, lists and other objects are none. Where two have one path (`{"a/b": 1, "a": {"b": 2}}`), the first
    has it.
    """
    found: dict[str, float] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            for path, inner in leaves(value, f"{prefix}{key}/").items():
                found.setdefault(path, inner)
        elif (number := as_number(value)) is not None:
            found.setdefault(f"{prefix}{key}", number)
    return found


def as_number(value: Any) -> float | None:
    """A number as Python's own, an integer as int where Parquet can hold it; None where it is none."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if isinstance(value, numbers.Integral) and -_INT64 <= int(value) < _INT64:
        return int(value)
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def texts(nested: Mapping[Any, Any], prefix: str = "", *, objects: bool = False) -> dict[str, str]:
    """The entries of a nested mapping that are not numbers, as text by their path.

    Args:
        nested: The nested mapping.
        prefix: Text before each path. Default "".
        objects: Whether to take other things than words, switches, None, and lists and tuples of these and of numbers.
            Default False.
    """
    found: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            for path, text in texts(value, f"{prefix}{key}/", objects=objects).items():
                found.setdefault(path, text)
        elif as_number(value) is None and (objects or _is_plain(value)):
            found.setdefault(f"{prefix}{key}", _text(value))
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST and all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool) or as_number(value) is not None or _is_switch(value)


def _is_switch(value: Any) -> bool:
    return getattr(value, "shape", None) == () and isinstance(value.item(), bool)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value.item() if _is_switch(value) else value)
    return text[:_LONGEST].encode(errors="replace").decode()


def _spent(count: float) -> float:
    return max(count, 0.0) if math.isfinite(count) else 0.0
