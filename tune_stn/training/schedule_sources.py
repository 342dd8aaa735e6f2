"""Where schedules come from: tables of runs, long or wide, and the policy files of Tune's PBT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype
from pyarrow.fs import FileSystem

from tune_stn.checked import COUNT, FINITE, TEXT, Shape, is_unicode, parse_json, read_whole
from tune_stn.training.tables import RUN_COLUMNS, read_parquet, to_frame

# A row of these sources took effect after a step of its epoch; those of others, when their epoch began.
AFTER_A_STEP = ("stn", "replay")
COPIED = ("explore", "exploit")
LISTED = 6
MOST_POLICY_BYTES = 2**26  # a hundred thousand changes
_LINE: Shape = [(TEXT, COUNT, {})]  # texts, iterations and configs
_CLOCKS = ("step", "epoch", "training_iteration")
_LABELS = (*RUN_COLUMNS, "trial_id")


def read_frame(path: str | Path) -> pd.DataFrame:
    """A Parquet file. Raises FileNotFoundError, or ValueError saying what is wrong with it."""
    if "://" not in str(path) and Path(path).is_dir():
        raise ValueError(f"{path} is a directory; of a study, give the schedule.parquet in it")
    if "://" not in str(path) and Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path} is no regular file")
    try:
        if "://" not in str(path):
            return to_frame(read_parquet(path))
        filesystem, place = FileSystem.from_uri(str(path))
        with filesystem.open_input_file(place) as file:
            return to_frame(read_parquet(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"no schedule at {path}; a study has one in its schedule.parquet") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ValueError(f"{path} is damaged, or no Parquet file ({reason})") from error


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The table, if what a schedule is read from in it is what it should be; other columns may hold anything.

    Raises:
        ValueError: a cell is of another kind; the message names its column and row.
    """
    names = [str(column) for column in frame.columns]
    if wrong := [name for name in names if not is_unicode(name)]:
        raise ValueError(f"the table has a column {wrong[0]!r}: accepted are names of whole characters")
    known = {*_LABELS, *_CLOCKS, "parent_trial_id", "source", "hp", "value"}
    read = [name for name in names if name in known or name.startswith("hp/")]
    if twice := [name for name in read if names.count(name) > 1]:
        raise ValueError(f"the table has {names.count(twice[0])} columns {twice[0]!r}")
    frame = frame.set_axis(names, axis=1)
    categories = [name for name in read if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    frame = frame.astype({name: frame[name].cat.categories.dtype for name in categories})
    long = {"hp", "value"} <= {*names}
    for name in read:
        column = frame[name]
        if name in _CLOCKS:
            _check_column(column, "whole numbers from 0 on", _is_whole(column))
        elif name == "hp" or name in _LABELS:
            numbers = name != "hp"
            accepted = "texts or whole numbers" if numbers else "texts"
            _check_column(column, accepted, _of_each(column, _is_label if numbers else _is_name))
        elif name == "parent_trial_id":
            _check_column(column, "texts, or none", _of_each(column, lambda cell: _is_text(cell) or _is_none(cell)))
        elif name == "source":
            _check_column(column, "texts", _of_each(column, _is_text))
        elif name == "value" or not long:
            _check_column(column, "finite numbers", _is_finite(column))
    return frame


def _check_column(column: pd.Series, accepted: str, right: Any) -> None:
    wrong = ~np.asarray(right, dtype=bool)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"column {column.name!r} has {column.iloc[row]!r} in row {row}: accepted are {accepted}")


def _of_each(column: pd.Series, test: Callable[[Any], bool]) -> Any:
    """What a test says of each cell; of texts or of integers, millions of which may be a few, it is asked once."""
    if not (isinstance(column.dtype, pd.StringDtype) or is_integer_dtype(column)):
        return [test(cell) for cell in column]
    codes, different = pd.factorize(column)
    return np.array([*map(test, different), test(None)])[codes]  # of a cell that is none, the code is -1


def _is_label(cell: object) -> bool:
    return _is_name(cell) or _is_integer(cell)


def _is_name(cell: object) -> bool:
    return _is_text(cell) and cell != ""


def _is_text(cell: object) -> bool:
    return isinstance(cell, str) and is_unicode(cell)


def _is_integer(cell: object) -> bool:
    return isinstance(cell, (int, np.integer)) and not isinstance(cell, bool)


def _is_none(cell: object) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell)


def _is_finite(column: pd.Series) -> Any:
    if is_numeric_dtype(column) and not is_bool_dtype(column):
        return np.isfinite(column.to_numpy(np.float64, na_value=np.nan))
    return [FINITE.test(cell.item() if isinstance(cell, np.generic) else cell) for cell in column]


def _is_whole(column: pd.Series) -> Any:
    finite = np.asarray(_is_finite(column), dtype=bool)
    numbers = column.astype(object).where(finite, -1).astype(np.float64).to_numpy()
    return finite & (numbers >= 0) & (numbers < 2**53) & (numbers == np.floor(numbers))


def trial_rows(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows of one trial; those of its ancestors, too, up to the copies.

    Args:
        frame: A table of one or more trials, rows in the order in which they were made.
        wanted: Column -> value that its rows have there; None for any.

    Raises:
        ValueError: there are no such rows, or those of several trials; or a cell is not what it should be.
    """
    frame = checked(frame)
    wanted = {column: value for column, value in wanted.items() if value is not None}
    if absent := [column for column in wanted if column not in frame]:
        raise ValueError(
            f"the table has no column {absent[0]!r} to choose by, but {', '.join(map(str, frame.columns))}"
        )
    chosen = frame
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    labels = [column for column in (*RUN_COLUMNS, "trial_id") if column in frame]
    if not len(chosen):
        words = " and ".join(f"{column} {value!r}" for column, value in wanted.items())
        raise ValueError(f"the table has no rows{' of ' if words else ''}{words}, but of: {_trials(frame[labels])}")
    trials = chosen[labels].drop_duplicates()
    if labels and len(trials) > 1:
        raise ValueError(
            f"the table holds the schedules of {len(trials)} trials: {_trials(trials)}; choose one by trial_id="
        )
    if not {"trial_id", "parent_trial_id", "hp"} <= {*frame.columns}:
        return _unbroken(chosen)
    if absent := [column for column in ("step", "source") if column not in frame]:
        raise ValueError(f"the table has the column 'parent_trial_id', but no {absent[0]!r} to tell the copies by")
    run = [column for column in RUN_COLUMNS if column in frame]
    of_run = (frame[run] == trials[run].iloc[0]).all(axis=1)
    return _lineage(frame[of_run].reset_index(drop=True), trials["trial_id"].iloc[0])


def _lineage(rows: pd.DataFrame, trial: str) -> pd.DataFrame:
    """The rows of a trial since it last copied another one, after those that led the other one to that point.

    Args:
        rows: Rows of a whole run, numbered, in the order in which they were made, or trial by trial.
        trial: Id of the trial.
    """
    parts: list[pd.DataFrame] = []
    made, end = len(rows), np.inf
    while True:
        own = rows[(rows["trial_id"] == trial) & (rows["step"] < end)]
        if (own.index < made).any():  # what the trial did after it was copied is not in the copy
            own = own[own.index < made]
        if not len(own):
            raise ValueError(f"the table lacks the rows of trial {trial!r} before step {end:g}, where it was copied")
        copies = own[own["source"].isin(COPIED) & own["parent_trial_id"].notna()]
        if not len(copies):
            return pd.concat([_unbroken(own), *parts])
        last, made = copies.iloc[-1], int(copies.index[-1])
        at_copy = copies[(copies["step"] == last["step"]) & (copies["parent_trial_id"] == last["parent_trial_id"])]
        parts.insert(0, own[own.index.isin(at_copy.index) | (own.index > made)])
        trial, end = last["parent_trial_id"], last["step"]


def _unbroken(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a trial of which no parent is known. Raises ValueError if there was one."""
    if "source" in rows and (rows["source"] == "exploit").any():
        raise ValueError(
            "the trial copied another one, and the table does not say which: read the schedule table of the whole "
            "study, which has the values that led to the trial's weights"
        )
    return rows


def _trials(labels: pd.DataFrame) -> str:
    """The trials of a table in a few words."""
    names = [" ".join(map(str, row)) for row in labels.drop_duplicates().itertuples(index=False)]
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def records(rows: pd.DataFrame) -> dict[str, Any]:
    """`names, times, values, unit, epochs, integers` of a `Schedule` from the rows of one trial.

    Raises:
        ValueError: the columns are not those of a schedule.
    """
    if {"hp", "value"} <= {*rows.columns} and {"step", "epoch"} & {*rows.columns}:
        return _long_records(rows)
    if any(column.startswith("hp/") for column in map(str, rows.columns)):
        return _wide_records(rows)
    raise ValueError(
        f"no schedule in a table of the columns {', '.join(map(str, rows.columns))}; accepted is a long one with step "
        "or epoch, hp and value, or a wide one with hp/<name> beside epoch, training_iteration or step"
    )


def _long_records(rows: pd.DataFrame) -> dict[str, Any]:
    unit = "step" if "step" in rows else "epoch"
    # What was set again at the same time replaces what was set before.
    latest = rows.drop_duplicates([unit, "hp"], keep="last")
    names = rows["hp"].unique().tolist()
    values = latest.pivot(index=unit, columns="hp", values="value")[names]
    epochs = None
    if unit == "step" and {"epoch", "source"} <= {*rows.columns}:
        began = rows["epoch"] + (rows["source"].isin(AFTER_A_STEP) & (rows["step"] > 0))
        epochs = began.groupby(rows["step"]).max().to_numpy()
    # A row for each change only: what did not change has none.
    return {
        "names": tuple(names),
        "times": values.index.to_numpy(),
        "values": values.ffill().bfill().to_numpy(),
        "unit": unit,
        "epochs": epochs,
    }


def _wide_records(rows: pd.DataFrame) -> dict[str, Any]:
    clocks = [column for column in ("epoch", "training_iteration", "step") if column in rows]
    if not clocks:
        raise ValueError("the table has hp/<name>, but neither epoch nor training_iteration nor step beside them")
    if "parent_trial_id" in rows and rows["parent_trial_id"].fillna("").ne("").any():
        raise ValueError(
            "the table holds the reports of a trial that copied another one, not the values that led to its weights: "
            "read the schedule table of the whole study, or Tune's policy file"
        )
    # A trial that went on from a checkpoint after a failure repeats reports.
    latest = rows.drop_duplicates(clocks[0], keep="last").sort_values(clocks[0])
    columns = [column for column in rows.columns if str(column).startswith("hp/")]
    by_step = clocks[0] == "step"
    return {
        "names": tuple(column.removeprefix("hp/") for column in columns),
        "times": latest[clocks[0]].to_numpy() - (not by_step),
        "values": latest[columns].to_numpy(),
        "unit": "step" if by_step else "epoch",
        "integers": [name.removeprefix("hp/") for name in columns if is_integer_dtype(rows[name])],
    }


def policy_records(path: Path) -> dict[str, Any]:
    """`names, times, values, unit, integers` of a `Schedule` from a policy file of Tune's PBT.

    Each line is `[trial, copied trial, its iteration, the copied one's, the copied one's config, new config]`. The
    file of a trial begins as a copy of the copied trial's file, so the last line's ancestors are found backwards.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is none, or a line lacks what another has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no policy file at {path}; Tune's PBT writes pbt_policy_<trial>.txt beside its trials")
    try:
        lines = read_whole(path, most=MOST_POLICY_BYTES).splitlines()
    except ValueError as error:
        raise ValueError(f"{path} is no policy file of Tune's PBT: {error}") from None
    configs: dict[int, dict[str, float]] = {}
    heir = None
    read: dict[str, dict[str, float]] = {}  # where a config stands, and its numbers
    for number, line in reversed([*enumerate(lines, start=1)]):
        try:
            trial, copied, iteration, old, new = _policy_line(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is none of a policy file of Tune's PBT: {error}") from None
        if heir not in (None, trial):
            break  # a change of before the copy, which the copy has overwritten
        heir = copied
        read |= {f"the new config of line {number}": new, f"the old config of line {number}": old}
        if not configs or iteration < min(configs):
            configs[iteration] = new
        first = old
    if not configs:
        raise ValueError(f"{path} is empty: the trial never changed its values; use Schedule.constant")
    configs.setdefault(0, first)
    names = list(first)
    anywhere = {name: place for place, config in read.items() for name in config}
    for place, config in read.items():
        if absent := [name for name in anywhere if name not in config]:
            raise ValueError(f"{path}: {absent[0]!r} is a number in {anywhere[absent[0]]}, and not in {place}")
    if not names:
        raise ValueError(f"{path}: no number is in its configs, so there is no schedule")
    times = sorted(configs)
    return {
        "names": tuple(names),
        "times": np.array(times),
        "values": np.array([[configs[time][name] for name in names] for time in times], np.float64),
        "unit": "epoch",
        "integers": frozenset(n for n in names if all(isinstance(one[n], int) for one in configs.values())),
    }


def _policy_line(line: bytes) -> tuple[str, str, int, dict[str, float], dict[str, float]]:
    """Trial, copied trial, its iteration, and the numbers of its config and of the new one. Raises ValueError."""
    found = parse_json(line, _LINE)
    if len(found) != 6:
        raise ValueError(f"it has {len(found)} entries, not 6")
    trial, copied, _, iteration, old, new = found
    if not (TEXT.test(trial) and TEXT.test(copied) and COUNT.test(iteration)):
        raise ValueError("its first entries are not the names of two trials and two iterations")
    if not (isinstance(old, dict) and isinstance(new, dict)):
        raise ValueError("its last entries are not two configs")
    numbers = [dict(_numbers(config)) for config in (old, new)]
    for name, value in [*numbers[0].items(), *numbers[1].items()]:
        if not FINITE.test(value) or not name.strip("/ "):
            raise ValueError(f"{name!r} is {value!r}: accepted are a name and a finite number")
    return trial, copied, int(iteration), *numbers


def _numbers(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """The numeric leaves of a config; those under `hp` by their names, others by their paths."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, "" if not path and key == "hp" else f"{path}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}{key}", value
