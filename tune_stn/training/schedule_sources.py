"""Where schedules come from: tables of runs, long or wide, and the policy files of Tune's PBT."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_integer_dtype

RUN = ["task", "method", "seed"]
# A row of these sources took effect after a step of its epoch; those of others, when their epoch began.
AFTER_A_STEP = ("stn", "replay")
COPIED = ("explore", "exploit")
LISTED = 6


def read_frame(path: str | Path) -> pd.DataFrame:
    """A Parquet file. Raises FileNotFoundError, or ValueError saying what is wrong with it."""
    if "://" not in str(path) and Path(path).is_dir():
        raise ValueError(f"{path} is a directory; of a study, give the schedule.parquet in it")
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no schedule at {path}; a study has one in its schedule.parquet") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ValueError(f"{path} is damaged, or no Parquet file ({reason})") from error


def trial_rows(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows of one trial; those of its ancestors, too, up to the copies.

    Args:
        frame: a table of one or more trials, rows in the order in which they were made.
        wanted: column -> value that its rows have there; None for any.

    Raises:
        ValueError: there are no such rows, or those of several trials.
    """
    wanted = {column: value for column, value in wanted.items() if value is not None}
    if absent := [column for column in wanted if column not in frame]:
        raise ValueError(
            f"the table has no column {absent[0]!r} to choose by, but {', '.join(map(str, frame.columns))}"
        )
    chosen = frame
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    labels = [column for column in (*RUN, "trial_id") if column in frame]
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
    run = [column for column in RUN if column in frame]
    of_run = (frame[run] == trials[run].iloc[0]).all(axis=1)
    return _lineage(frame[of_run].reset_index(drop=True), trials["trial_id"].iloc[0])


def _lineage(rows: pd.DataFrame, trial: str) -> pd.DataFrame:
    """The rows of a trial since it last copied another one, after those that led the other one to that point.

    Args:
        rows: of a whole run, numbered; in the order in which they were made, or trial by trial.
        trial: whose lineage.
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
    names = list(dict.fromkeys(rows["hp"]))
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
        FileNotFoundError, ValueError: there is no such file, or it is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no policy file at {path}; Tune's PBT writes pbt_policy_<trial>.txt beside its trials")
    configs: dict[int, dict[str, float]] = {}
    heir = None
    for number, line in reversed([*enumerate(path.read_text().splitlines(), start=1)]):
        try:
            trial, copied, _, iteration, old, new = json.loads(line)
            old, new, iteration = dict(_numbers(old)), dict(_numbers(new)), int(iteration)
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"{path}, line {number} is none of a policy file of Tune's PBT") from None
        if heir not in (None, trial):
            break  # a change of before the copy, which the copy has overwritten
        heir = copied
        if not configs or iteration < min(configs):
            configs[iteration] = new
        first = old
    if not configs:
        raise ValueError(f"{path} is empty: the trial never changed its values; use Schedule.constant")
    configs.setdefault(0, first)
    names = [name for name in first if all(name in config for config in configs.values())]
    if not names:
        raise ValueError(f"{path}: no number is in all of its configs, so there is no schedule")
    times = sorted(configs)
    return {
        "names": tuple(names),
        "times": np.array(times),
        "values": np.array([[configs[time][name] for name in names] for time in times], np.float64),
        "unit": "epoch",
        "integers": frozenset(n for n in names if all(isinstance(one[n], int) for one in configs.values())),
    }


def _numbers(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """The numeric leaves of a config; those under `hp` by their names, others by their paths."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, "" if not path and key == "hp" else f"{path}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}{key}", value
