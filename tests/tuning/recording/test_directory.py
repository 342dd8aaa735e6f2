"""What a recorder leaves in its directory: the binding tables, whatever was reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tune_stn.training.schedule import Schedule
from tune_stn.training.tables import SCHEDULE_SCHEMA, read_table, reports_schema
from tune_stn.tuning.recording.directory import Labels, labelled, write_directory
from tune_stn.tuning.recording.journal import append
from tune_stn.tuning.recording.tables import Recorded, read_recorded

LABELS = Labels(task="t", method="m", seed=3)


def recorded(*rows: dict[str, object]) -> Recorded:
    common = {"trial_id": "a", "segment": "", "parent_trial_id": "", "status": "running", "reason": "", "step": 1}
    zeros = dict.fromkeys(("cost", "cost_total", "wall_time_s", "device_time_s", "train_loss", "val_loss"), 0.0)
    reports = pd.DataFrame([common | zeros | row for row in rows])
    return Recorded(reports=reports, failures={"b": "no"}, finished=frozenset(), copies={})


def write(directory: Path, what: Recorded) -> tuple[pd.DataFrame, pd.DataFrame]:
    write_directory(directory, what, LABELS, own_schedules=None, over=True, settings={"metric": "loss"})
    reports, schedule = (read_table(directory / f"{name}.parquet", name) for name in ("reports", "schedule"))
    return reports, schedule


def test_all_reported_numbers_are_columns_of_the_binding_tables(tmp_path: Path) -> None:
    first = {"epoch": 1, "loss": 1, "hp/lr": 1, "scale/lr": 0.0, "test_loss": np.nan}
    reports, schedule = write(tmp_path, recorded(first, {"epoch": 2, "eval/acc": 0.5, "hp/lr": 2.5}))
    assert list(reports) == reports_schema(["loss", "eval/acc"], ["lr"]).names
    assert reports[["task", "method", "seed", "report_index", "epoch", "hp/lr"]].to_numpy().tolist() == [
        ["t", "m", 3, 0, 1, 1.0],
        ["t", "m", 3, 1, 2, 2.5],
    ]
    assert reports["eval/acc"].isna().tolist() == [True, False]
    assert list(schedule) == SCHEDULE_SCHEMA.names
    assert schedule[["task", "value", "source"]].to_numpy().tolist() == [["t", 1.0, "fixed"], ["t", 2.5, "replay"]]
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["failures"] == {"b": "no"}
    assert study["recorder"] == {"metric": "loss"}
    assert (study["task"], study["methods"], study["seeds"]) == ("t", ["m"], [3])


def test_a_run_without_reports_has_empty_tables(tmp_path: Path) -> None:
    reports, schedule = write(tmp_path, read_recorded(tmp_path / "none"))
    assert reports.empty
    assert schedule.empty


def test_labelled_rows_have_the_columns_of_the_schema_alone() -> None:
    frame = labelled(pd.DataFrame({"x": [1], "step": [2], "scale": [None]}), LABELS, SCHEDULE_SCHEMA)
    assert list(frame) == SCHEDULE_SCHEMA.names
    assert frame["value"].isna().all()
    assert frame["scale"].dtype == np.float64


def test_integers_stay_integers_from_the_journal_to_a_replay(tmp_path: Path) -> None:
    """Through Parquet, whose column is one of floats; not one that some trial has had a fraction of."""
    common = {"trial_id": "a", "segment": "", "parent_trial_id": "", "status": "running"}
    common |= dict.fromkeys(("cost", "cost_total", "wall_time_s", "device_time_s", "val_loss"), 0.0)
    for epoch, width, share in ((1, 8, 1), (2, 16, 0.5)):
        append(
            tmp_path / "reports.jsonl",
            common | {"epoch": epoch, "step": epoch, "hp/width": width, "hp/share": share, "hp/late": 0.0},
        )
    write(tmp_path, read_recorded(tmp_path / "reports.jsonl"))
    tables = (read_table(tmp_path / "schedule.parquet", "schedule"), pd.read_parquet(tmp_path / "schedule.parquet"))
    for schedule in (Schedule.from_parquet(tmp_path / "schedule.parquet"), *map(Schedule.from_frame, tables)):
        assert repr(schedule.at(1)) == "{'width': 16, 'share': 0.5, 'late': 0.0}"
