from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tune_stn.files import whole_file
from tune_stn.training import tables
from tune_stn.training.schedule_buffer import SOURCES
from tune_stn.training.tables import (
    ALLOWED,
    INCUMBENT_SCHEMA,
    SCHEDULE_SCHEMA,
    hp_names,
    metric_names,
    read_parquet,
    read_table,
    reports_schema,
    to_frame,
    without_formulas,
    write_parquet,
    write_table,
)

ROW: dict[str, Any] = {"task": "t", "method": "stn", "seed": 0, "trial_id": "a", "parent_trial_id": None}
ROW |= {"step": 0, "epoch": 0, "hp": "dropout", "value": 0.5, "raw": 0.0, "scale": None, "source": "start"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "schedule.parquet"


def test_columns_are_the_binding_ones() -> None:
    schema = reports_schema(["val_accuracy"], ["dropout"])
    assert " ".join(schema.names) == (
        "task method seed trial_id report_index epoch step cost cost_total wall_time_s device_time_s "
        "train_loss val_loss test_loss val_accuracy hp/dropout status"
    )
    schedule = "task method seed trial_id parent_trial_id step epoch hp value raw scale source"
    assert " ".join(SCHEDULE_SCHEMA.names) == schedule
    incumbent = "task method seed cost_total wall_time_s trial_id best_val_loss test_loss_at_best"
    assert " ".join(INCUMBENT_SCHEMA.names) == incumbent
    assert hp_names(schema.names) == ["dropout"]
    assert metric_names(schema.names) == ["val_accuracy"]


def test_sources_are_those_of_the_training_layer() -> None:
    assert ALLOWED["source"] == SOURCES


def test_a_metric_may_not_take_a_known_name() -> None:
    with pytest.raises(ValueError, match="val_loss"):
        reports_schema(["val_loss"], [])


@pytest.mark.parametrize("as_frame", [True, False])
def test_round_trip_keeps_order_types_and_null(path: Path, as_frame: bool) -> None:
    rows = [dict(reversed(ROW.items())), ROW | {"value": 1, "parent_trial_id": "b", "scale": 0.25}]
    write_table(pd.DataFrame(rows) if as_frame else rows, SCHEDULE_SCHEMA, path)
    frame = read_table(path, "schedule")
    assert list(frame.columns) == SCHEDULE_SCHEMA.names
    assert frame["value"].tolist() == [0.5, 1.0]
    assert frame["seed"].dtype == np.int64
    assert frame["scale"].isna().tolist() == [True, False]
    assert pq.read_table(path)["scale"].null_count == 1
    assert pq.read_schema(path).metadata[b"tune_stn.table"] == b"schedule"
    assert pq.read_schema(path).metadata[b"tune_stn.schema_version"] == b"1"


@pytest.mark.parametrize("as_frame", [True, False])
def test_nan_stays_nan_where_null_is_not_allowed(path: Path, as_frame: bool) -> None:
    rows = [ROW | {"value": np.nan}]
    write_table(pd.DataFrame(rows) if as_frame else rows, SCHEDULE_SCHEMA, path)
    assert pq.read_table(path)["value"].null_count == 0
    assert np.isnan(read_table(path, "schedule")["value"][0])


def test_a_table_may_be_empty(path: Path) -> None:
    write_table([], SCHEDULE_SCHEMA, path)
    assert read_table(path, "schedule").empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unexpected column.*colour"),
        ({"step": "three"}, "column step must be int64"),
        ({"step": 1.5}, "column step must be int64"),
        ({"value": "high"}, "column value must be double"),
        ({"trial_id": 7}, "column trial_id must be string"),
        ({"trial_id": None}, "column trial_id is empty in 1 row"),
        ({"source": "guess"}, "source 'guess' is not one of start, stn"),
    ],
)
@pytest.mark.parametrize("as_frame", [True, False])
def test_a_wrong_column_is_named_and_nothing_is_written(
    path: Path, change: dict[str, Any], message: str, as_frame: bool
) -> None:
    rows = [ROW | change]
    with pytest.raises(ValueError, match=f"schedule table: .*{message}"):
        write_table(pd.DataFrame(rows) if as_frame else rows, SCHEDULE_SCHEMA, path)
    assert list(path.parent.iterdir()) == []


def test_a_missing_column_is_named(path: Path) -> None:
    without = {name: value for name, value in ROW.items() if name != "hp"}
    for data in ([ROW, without], pd.DataFrame([without])):
        with pytest.raises(ValueError, match=r"missing column.*hp"):
            write_table(data, SCHEDULE_SCHEMA, path)


def test_no_file_is_said(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no schedule table at .*schedule\.parquet"):
        read_table(path, "schedule")


def test_every_truncation_is_one_clear_line(path: Path) -> None:
    write_table([ROW], SCHEDULE_SCHEMA, path)
    whole = path.read_bytes()
    for length in [0, 3, 4, 40, len(whole) // 2, len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"schedule\.parquet is damaged") as caught:
            read_table(path, "schedule")
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_values_is_found(path: Path) -> None:
    write_table([ROW | {"value": 0.123456789}], SCHEDULE_SCHEMA, path)
    content = bytearray(path.read_bytes())
    content[content.index(np.float64(0.123456789).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        read_table(path, "schedule")


def test_foreign_tables_and_other_versions_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table([ROW], SCHEDULE_SCHEMA, path)
    with pytest.raises(ValueError, match="should be the reports table but is schedule"):
        read_table(path, "reports")
    with monkeypatch.context() as later:
        later.setattr(tables, "STUDY_SCHEMA_VERSION", 2)
        with pytest.raises(ValueError, match="schema version 1, not 2; use the version"):
            read_table(path, "schedule")
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match="no table of tune_stn"):
        read_table(path, "schedule")


def test_a_table_with_other_columns_is_refused(path: Path) -> None:
    fewer = pa.schema(list(SCHEDULE_SCHEMA)[:-1], SCHEDULE_SCHEMA.metadata)
    pq.write_table(fewer.empty_table(), path)
    with pytest.raises(ValueError, match="lacks columns"):
        read_table(path, "schedule")


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    write_table([ROW], SCHEDULE_SCHEMA, path)
    before = path.read_bytes()

    def fail_halfway() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_texts_that_a_spreadsheet_would_run_come_after_an_apostrophe() -> None:
    frame = pd.DataFrame({"a": ["=1+1", "+x", "-x", "@x", "-1.5", "x=1", None], "b": [-1.0] * 7})
    escaped = without_formulas(frame)
    assert escaped["a"].tolist()[:6] == ["'=1+1", "'+x", "'-x", "'@x", "-1.5", "x=1"]
    assert escaped["b"].equals(frame["b"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "change"),
    [(1, lambda old: bytes([old[0] ^ 4])), (15, lambda old: bytes(len(old))), (512, lambda old: bytes(len(old)))],
    ids=["flipped", "zeros", "a lost sector"],
)
def test_any_damage_of_a_parquet_file_is_found(tmp_path: Path, width: int, change: Callable[[bytes], bytes]) -> None:
    """Or does not matter. Zeros in the footer end it early: names and values stay, our digest is gone."""
    path = tmp_path / "one.parquet"
    frame = pd.DataFrame({"hp": ["rate"] * 4, "value": [0.1, 0.2, 0.3, 0.4]})
    frame.attrs["integers"] = ["rate"]
    write_parquet(frame, path)
    content = path.read_bytes()
    accepted = 0
    for at in range(0, len(content) - width, 3):
        path.write_bytes(content[:at] + change(content[at : at + width]) + content[at + width :])
        try:
            found = to_frame(read_parquet(path))
        except ValueError:
            continue
        accepted += 1
        assert found.equals(frame), at
        assert found.attrs == frame.attrs, at
    assert width > 1 or 0 < accepted < len(content) / 3 / 2  # those in what pandas and pyarrow note for themselves
