"""A hyperparameter schedule as data: read from a run, looked at, and replayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tune_stn.checked import TEXT, mismatch
from tune_stn.files import whole_file
from tune_stn.space.search_space import SearchSpace
from tune_stn.training.schedule_buffer import SCHEDULE_FILE
from tune_stn.training.schedule_sources import policy_records, read_frame, records, trial_rows
from tune_stn.training.tables import write_parquet

UNITS = ("step", "epoch")
INTERPOLATIONS = ("previous", "linear")
MOST_TIME = 2**53  # what a float counts to


@dataclass(frozen=True, eq=False)
class Schedule:
    """Values of hyperparameters over training steps, or over epochs; both count from 0.

    The values of a record are in force from its time on: at step t, the training step after t others. Before the first
    record its values hold, after the last one the last.

    Attributes:
        names: Names of the `n` hyperparameters.
        times: Times of the records, increasing, shape `(records,)`.
        values: Values of the hyperparameters, finite, shape `(records, n)`.
        unit: What `times` count, "step" (of training) or "epoch". Default "step".
        interpolation: How values between two records are found: "previous" holds the earlier one's values, "linear"
            goes straight from one to the other. `dataclasses.replace(schedule, interpolation="linear")` changes it.
            Default "previous".
        epochs: First epoch that begins with each record in force, for times in steps, shape `(records,)`. Default None:
            unknown.
        integers: Names of hyperparameters that are whole numbers: `at` gives them as int, but for what "linear" makes
            of them in between. The tables that a `Recorder` and `to_parquet` write keep them. Default none.

    Raises:
        ValueError: shapes do not fit, a value is not finite, times do not increase, or a word is not accepted.

    Example:
        A plain network in a loop of your own, with the values at every step:

        >>> schedule = Schedule.from_parquet("study/schedule.parquet", trial_id="0a1b2_00000")
        >>> for (step, hp), batch in zip(schedule, loader):
        ...     model.dropout.p = hp["dropout"]

        `zip` ends with the last record; `schedule.at(step)` holds its values for longer.
    """

    names: tuple[str, ...]
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    unit: Literal["step", "epoch"] = "step"
    interpolation: Literal["previous", "linear"] = "previous"
    epochs: NDArray[np.int64] | None = None
    integers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "times", _integers("times", self.times))
        object.__setattr__(self, "values", _numbers("values", self.values))
        object.__setattr__(self, "integers", frozenset(self.integers) & {*self.names})
        if self.epochs is not None:
            object.__setattr__(self, "epochs", _integers("epochs", self.epochs))
        self._check()
        for array in (self.times, self.values, self.epochs):
            if array is not None:
                array.setflags(write=False)

    def _check(self) -> None:
        named = all(isinstance(name, str) and name for name in self.names)
        if not self.names or not named or len(set(self.names)) < len(self.names):
            raise ValueError(f"names {self.names!r} of a schedule: accepted is at least one text, each once")
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} of a schedule: accepted are {', '.join(UNITS)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r}: accepted are {', '.join(INTERPOLATIONS)}")
        if not len(self.times) or self.values.shape != (len(self.times), len(self.names)):
            raise ValueError(
                f"a schedule of {len(self.names)} hyperparameter(s) at {len(self.times)} time(s) has values of shape "
                f"{self.values.shape}: accepted is (times, hyperparameters), with one time at least"
            )
        if self.times[0] < 0 or (np.diff(self.times) <= 0).any():
            raise ValueError(f"times {_shortened(self.times.tolist())} of a schedule: accepted are increasing, from 0")
        for name, column in zip(self.names, self.values.T, strict=True):
            if not np.isfinite(column).all():
                time = self.times[~np.isfinite(column)][0]
                raise ValueError(f"{name!r} is not finite at {self.unit} {time}: a schedule has a number everywhere")
        epochs = self.epochs
        if epochs is not None and (
            self.unit != "step"
            or epochs.shape != self.times.shape
            or (np.diff(epochs) < 0).any()
            or ((epochs > 0) != (self.times > 0)).any()
        ):
            raise ValueError(
                f"epochs {_shortened(epochs.tolist())} of a schedule: accepted is, for each step, the first epoch that "
                "begins at it or after it"
            )

    @classmethod
    def from_parquet(
        cls, path: str | Path, *, trial_id: str | None = None, method: str | None = None, seed: int | None = None
    ) -> Schedule:
        """From a study's `schedule.parquet`, that of a trial's checkpoint, or any file of `from_frame`'s tables.

        Args:
            path: A file, or a URI that pyarrow reads (`s3://...`).
            trial_id: Id of the trial, where the table holds several. Default None.
            method: Name of the trial's method, where the table holds several. Default None.
            seed: Seed of the trial's run, where the table holds several. Default None.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no Parquet file, holds no schedule, or one of several trials.
        """
        frame = read_frame(path)
        try:
            return cls.from_frame(frame, trial_id=trial_id, method=method, seed=seed)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, trial_id: str | None = None, method: str | None = None, seed: int | None = None
    ) -> Schedule:
        """From a table, long or wide.

        Long: a study's `schedule` table, or any with the columns `hp`, `value` and `step` (or, without it, `epoch`),
        in the order of time. A trial that copied another one (PBT) gives the schedule that led to its weights: the
        other's values up to the copy, then its own.

        Wide: columns `hp/<name>` beside `epoch` or `training_iteration` (a report closes its epoch, so the first
        report's values are those of epoch 0) or, without these, `step`. A self-tuning run changes its values within
        an epoch: take its `schedule` table rather than its reports.

        Args:
            frame: The table.
            trial_id: Id of the trial, where the table holds several. Default None.
            method: Name of the trial's method, where the table holds several. Default None.
            seed: Seed of the trial's run, where the table holds several. Default None.

        Raises:
            ValueError: the table holds no schedule, that of several trials, or not what a copy was made from; or it has
                a value that is no finite number, a time that is none, or a row without a name.
        """
        rows = trial_rows(frame, trial_id=trial_id, method=method, seed=seed)
        found = records(rows)
        if problem := mismatch(frame.attrs, {"integers?": [TEXT], "interpolation?": TEXT}, "frame.attrs"):
            raise ValueError(problem)
        integers = {*found.pop("integers", ()), *frame.attrs.get("integers", ())}
        interpolation = frame.attrs.get("interpolation", "previous")
        return cls(**found, integers=frozenset(integers), interpolation=interpolation)

    @classmethod
    def from_result(cls, result: Any) -> Schedule:
        """From a trial's `ray.tune.Result`: its checkpoint's schedule, or else the `hp/<name>` that it reported.

        Raises:
            ValueError: it has neither.
        """
        if result.checkpoint is not None:
            with result.checkpoint.as_directory() as directory:
                file = Path(directory) / SCHEDULE_FILE
                if file.exists():
                    return cls.from_parquet(file)
        reports = result.metrics_dataframe
        if reports is None or not any(str(column).startswith("hp/") for column in reports.columns):
            raise ValueError(
                f"the result has no schedule: no {SCHEDULE_FILE} in its checkpoint and no hp/<name> in its reports. "
                "Report the values as hp/<name>, or, of Tune's PBT, read the policy file by Schedule.from_pbt_policy"
            )
        return cls.from_frame(reports)

    @classmethod
    def from_pbt_policy(cls, path: str | Path) -> Schedule:
        """From the `pbt_policy_<trial>.txt` that Tune's PBT writes, by epochs (training iterations).

        The numbers of the config become hyperparameters: `config["hp"]["rate"]` is "rate", `config["a"]["b"]` "a/b".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no policy file, or a number of one of its configs is none in another.
        """
        return cls(**policy_records(Path(path).expanduser()))

    @classmethod
    def constant(cls, values: Mapping[str, float]) -> Schedule:
        """The same values all the time."""
        integers = frozenset(name for name, value in values.items() if isinstance(value, int))
        array = np.array([list(values.values())], np.float64)
        return cls(tuple(values), np.zeros(1, np.int64), array, integers=integers)

    def at(self, time: float) -> dict[str, float]:
        """The values in force at a time, in the schedule's unit."""
        before = max(int(np.searchsorted(self.times, time, side="right")) - 1, 0)
        values = self.values[before]
        if self.interpolation == "linear" and self.times[before] < time < self.times[-1]:
            ends = self.values[before : before + 2]
            share = (time - self.times[before]) / (self.times[before + 1] - self.times[before])
            # Clipped, for rounding alone may lead outside.
            values = np.clip((1 - share) * ends[0] + share * ends[1], ends.min(0), ends.max(0))
        whole = self.integers
        pairs = zip(self.names, values.tolist(), strict=True)
        return {name: int(value) if name in whole and value.is_integer() else value for name, value in pairs}

    def __iter__(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Every time from 0 to the last record's, with its values."""
        return ((time, self.at(time)) for time in range(int(self.times[-1]) + 1))

    def changes(self) -> list[tuple[int, dict[str, float]]]:
        """Time 0, and every other whole time at which some value is not that of the time before; all the values."""
        times = range(int(self.times[-1]) + 1) if self.interpolation == "linear" else [0, *self.times.tolist()]
        changes: list[tuple[int, dict[str, float]]] = []
        for time in times:
            values = self.at(time)
            if not changes or values != changes[-1][1]:
                changes.append((time, values))
        return changes

    def per_epoch(self, steps_per_epoch: int | None = None) -> Schedule:
        """The values at the beginning of each epoch, by epochs; for a run with epochs of another length, say.

        Args:
            steps_per_epoch: Number of training steps of an epoch. Default None: the schedule knows its `epochs`, or
                counts epochs already.

        Raises:
            ValueError: it is needed, or not positive.
        """
        if self.unit == "epoch":
            return self
        if steps_per_epoch is not None:
            if steps_per_epoch < 1:
                raise ValueError(f"steps_per_epoch={steps_per_epoch}: accepted is an integer of 1 or more")
            epochs = np.arange(-(-int(self.times[-1]) // steps_per_epoch) + 1)
            values = [list(self.at(epoch * steps_per_epoch).values()) for epoch in epochs.tolist()]
            return Schedule(self.names, epochs, np.array(values), "epoch", integers=self.integers)
        if self.epochs is None or self.interpolation != "previous":
            raise ValueError("the schedule does not know where its epochs begin: give steps_per_epoch=")
        epochs = self.epochs.copy()
        epochs[0] = 0  # the first record holds before its time, too
        last = np.append(np.diff(epochs) > 0, True)  # of the records up to the beginning of an epoch
        return Schedule(self.names, epochs[last], self.values[last], "epoch", integers=self.integers)

    def select(self, *names: str) -> Schedule:
        """The schedule of some of its hyperparameters.

        Raises:
            ValueError: it has no such hyperparameter.
        """
        if unknown := [name for name in names if name not in self.names]:
            raise ValueError(f"the schedule has no {unknown[0]!r}; it has {', '.join(self.names)}")
        columns = [self.names.index(name) for name in names]
        values = self.values[:, columns]
        return Schedule(names, self.times, values, self.unit, self.interpolation, self.epochs, self.integers)

    def check(self, space: SearchSpace) -> None:
        """Raise ValueError unless all names are of the space, and all values in their domains."""
        if unknown := [name for name in self.names if name not in space]:
            raise ValueError(
                f"the schedule has {unknown[0]!r}, which is not a hyperparameter of this task; it has "
                f"{', '.join(space)}. Schedule.select(...) leaves out what is not wanted"
            )
        for name, column in zip(self.names, self.values.T, strict=True):
            for time, value in zip(self.times.tolist(), column.tolist(), strict=True):
                if not space[name].contains(value):
                    raise ValueError(
                        f"{name!r} of the schedule is {value:g} at {self.unit} {time}, outside {space[name].describe()}"
                    )

    def to_frame(self) -> pd.DataFrame:
        """Long form, which `from_frame` reads: `step` (`epoch` too, where known) or `epoch`; `hp`, `value`, `source`.

        Of steps, these are the rows that a replay of the schedule records; `interpolation` is in `frame.attrs`.
        """
        count = len(self.names)
        columns: dict[str, Any] = {self.unit: self.times.repeat(count)}
        if self.epochs is not None:
            columns["epoch"] = (self.epochs - (self.times > 0)).repeat(count)
        columns |= {"hp": list(self.names) * len(self.times), "value": self.values.ravel(), "source": "replay"}
        frame = pd.DataFrame(columns)
        frame.attrs["interpolation"] = self.interpolation
        if self.integers:
            frame.attrs["integers"] = sorted(self.integers)
        return frame

    def to_parquet(self, path: str | Path) -> None:
        """Write `to_frame()` to a file, which `from_parquet` reads."""
        if isinstance(path, str) and "://" in path:
            write_parquet(self.to_frame(), str(path))
            return
        with whole_file(Path(path)) as temporary:
            write_parquet(self.to_frame(), temporary)

    def _key(self) -> tuple[Any, ...]:
        arrays = (self.times, self.values, self.epochs)
        words = (self.names, self.unit, self.interpolation, self.integers)
        return *words, *(None if array is None else array.tobytes() for array in arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        first, last = self.times[[0, -1]]
        return f"Schedule({', '.join(self.names)}; {len(self.times)} record(s), {self.unit} {first} to {last})"


def _numbers(name: str, given: Any) -> NDArray[np.float64]:
    try:
        return np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} of a schedule: accepted are numbers, with one row of as many for each time") from None


def _integers(name: str, given: Any) -> NDArray[np.int64]:
    array = _numbers(name, given)
    whole = np.isfinite(array).all() and (array == np.floor(array)).all() and (np.abs(array) < MOST_TIME).all()
    if array.ndim != 1 or not whole:
        raise ValueError(f"{name} {given!r} of a schedule: accepted are whole numbers, one for each record")
    return array.astype(np.int64)


def _shortened(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
