"""The three result tables: their columns and types, and checked, atomic reading and writing of Parquet."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_numeric_dtype

from tune_stn.checked import parse_json
from tune_stn.files import whole_file

STUDY_SCHEMA_VERSION = 1
"""Version of the three tables and of study.json; it goes up with any change to a column or a key."""

ALLOWED = {
    "status": ("running", "finished", "stopped", "diverged", "failed"),
    "source": ("start", "stn", "explore", "exploit", "fixed", "replay"),
}
"""Columns that hold one of a few words."""

_NULLABLE = {"raw", "scale", "parent_trial_id"}  # methods that have none write null
_TEXT = {"task", "method", "trial_id", "parent_trial_id", "hp", "status", "source"}
_INTEGER = {"seed", "report_index", "epoch", "step"}
RUN_COLUMNS = ["task", "method", "seed"]
"""The columns that name one run: one method on one task at one seed, with all of its trials."""
_REPORTS = (
    *(
        *RUN_COLUMNS,
        "trial_id",
        "report_index",
        "epoch",
        "step",
        "cost",
        "cost_total",
        "wall_time_s",
        "device_time_s",
    ),
    *("train_loss", "val_loss", "test_loss"),
)
CHOICE = "choice/"
"""Before the name of a hyperparameter that is not a number, in the column with its value as text."""
RESERVED = frozenset({*_REPORTS, *_TEXT, *_INTEGER, "segment", "reason"})
"""Names that no column of a trainable's own can have."""
_ATTRIBUTES = b"PANDAS_ATTRS"  # where pandas writes `DataFrame.attrs`
MOST_CELLS = 2**30
"""Of a Parquet file that is read: 8 GB of numbers, a hundred times the largest schedules."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError, OverflowError)
_DIGEST = b"tune_stn.sha256"
_KEY_NAME, _KEY_VERSION = b"tune_stn.table", b"tune_stn.schema_version"


def _schema(name: str, columns: Iterable[str]) -> pa.Schema:
    def kind(column: str) -> pa.DataType:
        if column in _TEXT or column.startswith(CHOICE):
            return pa.string()
        return pa.int64() if column in _INTEGER else pa.float64()

    def nullable(column: str) -> bool:
        return column in _NULLABLE or column.startswith(CHOICE)

    fields = [pa.field(column, kind(column), nullable=nullable(column)) for column in columns]
    return pa.schema(fields, {_KEY_NAME: name.encode(), _KEY_VERSION: str(STUDY_SCHEMA_VERSION).encode()})


SCHEDULE_SCHEMA = _schema(
    "schedule",
    (*RUN_COLUMNS, "trial_id", "parent_trial_id", "step", "epoch", "hp", "value", "raw", "scale", "source"),
)
"""Value of every hyperparameter over training, long: one row per change of one hyperparameter."""

INCUMBENT_SCHEMA = _schema(
    "incumbent",
    (*RUN_COLUMNS, "cost_total", "wall_time_s", "trial_id", "best_val_loss", "test_loss_at_best"),
)
"""Best-so-far, as `incumbent.best_so_far` gives it."""


def reports_schema(metrics: Sequence[str], hps: Sequence[str], choices: Sequence[str] = ()) -> pa.Schema:
    """Columns of the `reports` table of a task.

    Losses and metrics of the test split are NaN in reports at which it was not evaluated (`Training.test_every`): never
    in one whose validation loss is less than in all reports before.

    Args:
        metrics: Names of the task's own metrics, e.g. `val_accuracy`.
        hps: Names of the hyperparameters, without the `hp/` of their columns.
        choices: Names of hyperparameters that are not numbers, without the `choice/` of their columns; their values are
            text. Default none.

    Raises:
        ValueError: a metric has the name of another column.
    """
    columns = [*_REPORTS, *metrics, *(f"hp/{name}" for name in hps), *(CHOICE + name for name in choices), "status"]
    if len(set(columns)) < len(columns):
        twice = sorted({name for name in columns if columns.count(name) > 1})
        raise ValueError(f"reports would have two columns named {', '.join(twice)}; rename the metric or hp")
    return _schema("reports", columns)


def hp_names(columns: Iterable[str]) -> list[str]:
    """Names of the hyperparameters among the columns of a `reports` table, without the `hp/`."""
    return [name.removeprefix("hp/") for name in columns if name.startswith("hp/")]


def choice_names(columns: Iterable[str]) -> list[str]:
    """Names of the hyperparameters that are not numbers, among the columns of a `reports` table."""
    return [name.removeprefix(CHOICE) for name in columns if name.startswith(CHOICE)]


def metric_names(columns: Iterable[str]) -> list[str]:
    """The task's own metrics among the columns of a `reports` table: those not otherwise known."""
    return [name for name in columns if name not in {*_REPORTS, "status"} and not name.startswith(("hp/", CHOICE))]


def write_table(data: pd.DataFrame | Sequence[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write rows as Parquet, with exactly the schema's columns, in the schema's order and types.

    The file appears whole or not at all. NaN stays NaN in a column that may not be null, and is written as
    null in one that may. Whole numbers may stand as integers or floats; nothing else is converted. What a frame has in
    its `attrs` is kept as pandas keeps it.

    Raises:
        ValueError: a column is missing, unexpected or mistyped, or holds a word that is not allowed there.
    """
    name = schema.metadata[_KEY_NAME].decode()
    for columns in [data.columns] if isinstance(data, pd.DataFrame) else data:
        if missing := [column for column in schema.names if column not in columns]:
            raise ValueError(f"{name} table: missing column(s) {', '.join(missing)}")
        if unexpected := [str(column) for column in columns if column not in schema.names]:
            raise ValueError(f"{name} table: unexpected column(s) {', '.join(unexpected)}")
    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data, columns=schema.names)
    arrays = [_array(frame[field.name], field, name) for field in schema]
    with whole_file(path) as temporary:
        table = pa.Table.from_arrays(arrays, schema=schema)
        if attributes := frame.attrs:
            table = table.replace_schema_metadata({**schema.metadata, _ATTRIBUTES: json.dumps(attributes)})
        write_parquet(table, temporary)


def _array(column: pd.Series, field: pa.Field, table: str) -> pa.Array:
    from_pandas = field.nullable or not pa.types.is_floating(field.type)  # else NaN would become null
    try:
        array = pa.array(column, type=field.type, from_pandas=from_pandas)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{table} table: column {field.name} must be {field.type}: {reason}") from error
    if array.null_count and not field.nullable:
        raise ValueError(f"{table} table: column {field.name} is empty in {array.null_count} row(s)")
    allowed = ALLOWED.get(field.name)
    if allowed and (wrong := sorted(set(array.unique().to_pylist()) - set(allowed))):
        raise ValueError(f"{table} table: {field.name} {wrong[0]!r} is not one of {', '.join(allowed)}")
    return array


def read_table(path: Path, name: str) -> pd.DataFrame:
    """Read the table `name` (reports, schedule or incumbent) that `write_table` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no table of that name, or has another schema version. One line
            that names the file and what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {name} table at {path}; `tune-stn compare --out DIR` writes one")
    advice = "restore it from a copy, or delete it and run `tune-stn compare --resume`"
    try:
        table = read_parquet(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no Parquet file ({error}); {advice}") from error
    metadata = table.schema.metadata or {}
    if metadata.get(_KEY_NAME) != name.encode():
        found = metadata.get(_KEY_NAME, b"no table of tune_stn").decode(errors="replace")
        raise ValueError(f"{path} should be the {name} table but is {found}; put the right file there")
    version = metadata.get(_KEY_VERSION, b"none").decode(errors="replace")
    if version != str(STUDY_SCHEMA_VERSION):
        other = "use the version of tune_stn that wrote it, or run the study again"
        raise ValueError(f"{path} has schema version {version}, not {STUDY_SCHEMA_VERSION}; {other}")
    names = table.schema.names
    try:
        reports = reports_schema(metric_names(names), hp_names(names), choice_names(names))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {advice}") from None
    expected = {"reports": reports, "schedule": SCHEDULE_SCHEMA, "incumbent": INCUMBENT_SCHEMA}[name]
    if not table.schema.equals(expected):
        raise ValueError(f"{path} lacks columns of the {name} table, or has others; run the study again")
    try:
        return to_frame(table)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {advice}") from error


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """For a CSV file: texts that a spreadsheet would take for a formula (`=1+1`) come after an apostrophe."""

    def escaped(cell: Any) -> Any:
        if not isinstance(cell, str) or cell[:1] not in tuple("=+-@\t\r"):
            return cell
        try:
            float(cell)
        except ValueError:
            return f"'{cell}"
        return cell

    texts = [str(name) for name in frame.columns if not is_numeric_dtype(frame[name])]
    made: dict[str, Any] = {name: frame[name].map(escaped) for name in texts}
    return frame.assign(**made)


def write_parquet(data: pa.Table | pd.DataFrame, path: Path | str) -> None:
    """Write a Parquet file in which `read_parquet` finds every damage: pages have checksums, the names and attributes
    in the footer a digest. Of a frame, `attrs` are kept, and the index is not.
    """
    table: Any = data
    if isinstance(data, pd.DataFrame):
        table = pa.Table.from_pandas(data, preserve_index=False)
        if data.attrs:
            kept = {**(table.schema.metadata or {}), _ATTRIBUTES: json.dumps(data.attrs)}
            table = table.replace_schema_metadata(kept)
    metadata = {**(table.schema.metadata or {}), _DIGEST: _digest(table.schema)}
    pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True)


def _digest(schema: pa.Schema) -> bytes:
    """Of the names of columns, and of what else a schema says that is not in a page."""
    entries = sorted((key, value) for key, value in (schema.metadata or {}).items() if key != _DIGEST)
    return hashlib.sha256(repr((schema.names, entries)).encode()).hexdigest().encode()


def read_parquet(source: str | Path | BinaryIO) -> pa.Table:
    """A Parquet file, whose pages are held against their checksums, where it has them: all of ours do.

    Args:
        source: A path, or an open file of pyarrow's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, no Parquet file, or far larger than any table of a study. The message does not name
            it.
    """
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            about = file.metadata
            size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
            # Said in the file before any memory is taken: a few kilobytes can stand for terabytes of equal cells.
            if about.num_rows * about.num_columns > MOST_CELLS or size > 8 * MOST_CELLS:
                raise ValueError(f"{about.num_rows} rows of {about.num_columns} columns are too many")
            table = file.read()
        digest = (table.schema.metadata or {}).get(_DIGEST)
        footer = _footer(source)
        # A footer may be readable and yet have lost its end, and our digest with it: names that it does not need.
        if about.serialized_size != len(footer) or (digest is None and _DIGEST in footer):
            raise ValueError("its footer is cut short")
        if digest not in (None, _digest(table.schema)):
            raise ValueError("the checksum of its column names and attributes does not match")
        return table
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error


def _footer(source: str | Path | BinaryIO) -> bytes:
    """The bytes of a Parquet file that say what is in it; before the last eight, which say how many they are."""
    with ExitStack() as stack:
        file = stack.enter_context(open(source, "rb")) if isinstance(source, (str, Path)) else source
        end = file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(4), "little")
        file.seek(end - size)
        return file.read(size)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A frame of the columns of a table, with the `attrs` that pandas has kept there. Raises ValueError."""
    try:
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    except _UNREADABLE as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    frame.attrs = parse_json((table.schema.metadata or {}).get(_ATTRIBUTES, b"{}"), {})
    return frame
