"""From state folders to tables: numbering, how each trial ended, runs that have not begun."""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tune_stn.methods import get_method
from tune_stn.study.collect import TABLES, is_behind, metrics_of, outdate, write_tables
from tune_stn.study.report import write_report
from tune_stn.study.results import export_results, load_results
from tune_stn.study.run import Run
from tune_stn.study.seal import DONE, SCHEDULE
from tune_stn.study.state import state_folder
from tune_stn.tasks import get_task
from tune_stn.training.tables import INCUMBENT_SCHEMA, SCHEDULE_SCHEMA, STUDY_SCHEMA_VERSION, read_table, reports_schema
from tune_stn.tuning.recording.journal import REPORTS

TASK = get_task("digits-mlp")
RECORD = {"trials": 2, "cost_total": 4.0, "failures": {}, "hopeless": False}


def line(trial: str, epoch: int, total: float, loss: float, status: str = "running") -> dict[str, Any]:
    values = {f"hp/{name}": value for name, value in TASK.start.items()}
    metrics = {"val_accuracy": 0.5, "test_accuracy": 0.25}
    return {
        **{"trial_id": trial, "epoch": epoch, "step": 8 * epoch, "cost": float(epoch), "cost_total": total},
        **{"wall_time_s": total, "device_time_s": 0.1, "train_loss": 1.0, "val_loss": loss, "test_loss": loss + 1},
        **{"status": status, "reason": "", "parent_trial_id": "", "segment": ""},
        **values,
        **metrics,
    }


def make_run(folder: Path, lines: Sequence[dict[str, Any]], record: dict[str, Any] | None, name: str = "random") -> Run:
    folder.mkdir(parents=True)
    (folder / REPORTS).write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    if record is not None:
        (folder / DONE).write_text(json.dumps(record))
        row = {"trial_id": "a", "parent_trial_id": None, "step": 0, "epoch": 0, "hp": "dropout_1", "value": 0.5}
        row |= {"raw": None, "scale": None, "source": "fixed"}
        pd.DataFrame([row]).to_parquet(folder / SCHEDULE, index=False)
    method = get_method(name)
    return Run(task=TASK, config={}, method=method, seed=1, budget=4.0, trials=None, folder=folder)


LINES = [
    line("a", 1, 1.0, 0.9),
    line("b", 1, 2.0, 0.8),
    line("a", 2, 3.0, 0.7, "finished"),
    line("b", 2, 4.0, 0.75),
    line("c", 1, 5.0, float("inf"), "diverged"),
]


def tables(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return tuple(read_table(directory / f"{name}.parquet", name) for name in ("reports", "schedule", "incumbent"))  # type: ignore[return-value]


def test_reports_are_numbered_by_trial_and_labelled(tmp_path: Path) -> None:
    write_tables(TASK, [make_run(tmp_path / "r", LINES, RECORD)], tmp_path)
    reports, schedule, incumbent = tables(tmp_path)
    assert list(reports) == reports_schema(["val_accuracy", "test_accuracy"], list(TASK.space)).names
    assert reports["report_index"].tolist() == [0, 0, 1, 1, 0]
    assert set(zip(reports["task"], reports["method"], reports["seed"], strict=True)) == {("digits-mlp", "random", 1)}
    assert list(schedule) == SCHEDULE_SCHEMA.names
    assert schedule[["task", "method", "seed", "trial_id", "value"]].values.tolist() == [
        ["digits-mlp", "random", 1, "a", 0.5]
    ]
    assert list(incumbent) == INCUMBENT_SCHEMA.names
    assert incumbent["best_val_loss"].tolist() == [0.9, 0.8, 0.7]
    assert incumbent["test_loss_at_best"].tolist() == [1.9, 1.8, 1.7]


@pytest.mark.parametrize(
    ("record", "end_of_b"),
    [(RECORD, "stopped"), (RECORD | {"failures": {"b": "ValueError: no"}}, "failed"), (None, "running")],
    ids=["budget", "failure", "cut off"],
)
def test_the_last_report_says_how_a_trial_ended(tmp_path: Path, record: dict[str, Any] | None, end_of_b: str) -> None:
    write_tables(TASK, [make_run(tmp_path / "r", LINES, record)], tmp_path)
    reports = tables(tmp_path)[0]
    assert reports["status"].tolist() == ["running", "running", "finished", end_of_b, "diverged"]


def test_a_trial_that_ended_well_keeps_its_word_even_if_it_failed_later(tmp_path: Path) -> None:
    record = RECORD | {"failures": {"a": "died while saving"}}
    write_tables(TASK, [make_run(tmp_path / "r", LINES, record)], tmp_path)
    assert tables(tmp_path)[0]["status"].tolist()[2] == "finished"


def test_tables_of_the_same_runs_are_the_same_bytes(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "r", LINES, RECORD), make_run(tmp_path / "s", LINES, None, "stn")]
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_tables(TASK, runs, tmp_path / name)
        found.append([(tmp_path / name / f"{table}.parquet").read_bytes() for table in TABLES])
    assert found[0] == found[1]


def test_runs_that_have_not_begun_have_no_rows(tmp_path: Path) -> None:
    begun = make_run(tmp_path / "r", LINES, RECORD)
    absent = Run(
        task=TASK, config={}, method=get_method("stn"), seed=1, budget=4.0, trials=None, folder=tmp_path / "none"
    )
    write_tables(TASK, [absent, begun], tmp_path)
    assert set(tables(tmp_path)[0]["method"]) == {"random"}
    write_tables(TASK, [absent], tmp_path)
    reports, schedule, incumbent = tables(tmp_path)
    assert (len(reports), len(schedule), len(incumbent)) == (0, 0, 0)


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", LINES, RECORD)
    (run.folder / REPORTS).write_text("no json\n" + (run.folder / REPORTS).read_text())
    with pytest.raises(ValueError, match=r"r/reports\.jsonl, line 1 is damaged"):
        write_tables(TASK, [run], tmp_path)


# A study that runs, or was killed -------------------------------------------------------------------------------------


def half_finished(directory: Path, *, earlier_version: bool = False) -> None:
    """`random` has ended, `stn` has begun, `fixed` has not; no tables yet. One trial has failed."""
    begun = [line("d", 1, 1.9, 0.6), line("d", 2, 3.8, 0.5), {"trial_id": "e", "@event": "failed", "reason": "died"}]
    make_run(state_folder(directory, "random", 1), LINES, RECORD)
    make_run(state_folder(directory, "stn", 1), begun, None, "stn")
    study: dict[str, Any] = {"schema_version": STUDY_SCHEMA_VERSION, "task": "digits-mlp", "budget": 40.0}
    study |= {"methods": ["random", "stn", "fixed"], "seeds": [1], "missing": [], "settings": {}, "versions": {}}
    if not earlier_version:
        study |= {"metrics": metrics_of(TASK), "hyperparameters": list(TASK.space)}
    (directory / "study.json").write_text(json.dumps(study))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_study_that_runs_is_read_and_says_what_is_missing(tmp_path: Path, earlier_version: bool) -> None:
    half_finished(tmp_path, earlier_version=earlier_version)
    found = load_results(tmp_path)
    assert found.reports.groupby("method").size().to_dict() == {"random": 5, "stn": 2}
    assert list(found.reports) == reports_schema(["val_accuracy", "test_accuracy"], list(TASK.space)).names
    assert found.schedule.groupby("method").size().to_dict() == {"random": 1, "stn": len(TASK.space)}
    assert found.incumbent.groupby("method")["best_val_loss"].last().to_dict() == {"random": 0.7, "stn": 0.5}
    missing = {entry["method"]: entry["reason"] for entry in found.study["missing"]}
    assert missing == {
        "stn": "not finished: cost 3.8 of 40 so far, 1 of its trials failed, the first with: died; resume the study to "
        "go on",
        "fixed": "not begun; resume the study to go on",
    }
    page = html.unescape(write_report(found).read_text())
    assert all(reason in page for reason in missing.values())
    export_results(found, tmp_path / "out", "parquet")
    again = load_results(tmp_path / "out")
    assert again.study["missing"] == found.study["missing"]
    pd.testing.assert_frame_equal(again.reports, found.reports)
    assert not (tmp_path / "reports.parquet").exists()  # which are the study's own to write


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_study_of_which_nothing_has_begun_is_read(tmp_path: Path) -> None:
    half_finished(tmp_path)
    shutil.rmtree(tmp_path / "state")
    found = load_results(tmp_path)
    assert (len(found.reports), len(found.schedule), len(found.incumbent)) == (0, 0, 0)
    assert {entry["reason"] for entry in found.study["missing"]} == {"not begun; resume the study to go on"}
    assert "not begun" in write_report(found).read_text()


def test_tables_are_read_where_no_run_has_gone_on_since(tmp_path: Path) -> None:
    half_finished(tmp_path)
    runs = [make_run(tmp_path / "other", LINES[:1], RECORD)]
    write_tables(TASK, runs, tmp_path)
    assert len(load_results(tmp_path).reports) == 1
    journal = state_folder(tmp_path, "stn", 1) / REPORTS
    later = (tmp_path / "incumbent.parquet").stat().st_mtime_ns + 1
    os.utime(journal, ns=(later, later))
    assert len(load_results(tmp_path).reports) == 7


def test_tables_are_behind_whatever_a_resumed_study_writes_though_the_clock_was_set_back(tmp_path: Path) -> None:
    """They were written tomorrow: by their times alone, they would hold all that was reported since."""
    journal = state_folder(tmp_path, "random", 0) / REPORTS
    journal.parent.mkdir(parents=True)
    journal.touch()
    for name in TABLES:
        (tmp_path / f"{name}.parquet").touch()
        os.utime(tmp_path / f"{name}.parquet", (2e9, 2e9))
    assert not is_behind(tmp_path)
    outdate(tmp_path)
    assert is_behind(tmp_path)
