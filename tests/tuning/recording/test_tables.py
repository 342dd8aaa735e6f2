"""Rows of `reports` and `schedule` from the lines of a journal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from tune_stn.training.schedule_buffer import SCHEDULE_FILE, TRIAL, UNTIL
from tune_stn.training.tables import SCHEDULE_SCHEMA
from tune_stn.tuning.recording import tables as module
from tune_stn.tuning.recording.journal import COPIED, EVENT, FAILED, FINISHED, replace
from tune_stn.tuning.recording.tables import Recorded, read_own_schedules, read_recorded, report_rows, schedule_rows


def line(trial: str, epoch: int, hp: dict[str, float], segment: str = "", **more: Any) -> dict[str, Any]:
    values = {f"hp/{name}": value for name, value in hp.items()}
    return {
        **{"trial_id": trial, "segment": segment, "parent_trial_id": "", "status": "running", "epoch": epoch},
        **{"step": 10 * epoch, "val_loss": 1.0 / epoch, "device_time_s": 0.5, **values, **more},
    }


def read(path: Path, lines: Sequence[dict[str, Any]]) -> Recorded:
    """As from a journal: each report costs 1, and the newest line is the latest."""
    total = itertools.count(1.0)
    timed = [
        one if EVENT in one else {"cost_total": (at := next(total)), "cost": at, "wall_time_s": at} | one
        for one in lines
    ]
    replace(path / "reports.jsonl", timed)
    return read_recorded(path / "reports.jsonl")


def rows(frame: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return [
        tuple(None if pd.isna(cell) else cell for cell in row) for row in frame[list(columns)].itertuples(index=False)
    ]


def test_an_empty_journal_has_no_rows(tmp_path: Path) -> None:
    recorded = read_recorded(tmp_path / "none")
    assert report_rows(recorded, over=True).empty
    assert schedule_rows(recorded).empty
    assert list(schedule_rows(recorded)) == SCHEDULE_SCHEMA.names[3:]


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 1000])
def test_the_last_of_a_repetition_stands_in_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_A_TIME", rows_at_a_time)
    lines = [line("a", 1, {"x": 1.0}), line("a", 2, {"x": 1.0}, val_loss=7.0), line("b", 1, {"x": 1.0})]
    lines += [line("a", 2, {"x": 1.0}, val_loss=8.0, extra=3.0), line("a", 2, {"x": 1.0}, "copy")]
    reports = report_rows(read(tmp_path, lines), over=False)
    assert rows(reports, "trial_id", "report_index", "segment", "epoch", "val_loss", "cost_total", "extra") == [
        ("a", 0, "", 1, 1.0, 1.0, None),
        ("a", 1, "", 2, 8.0, 2.0, 3.0),
        ("b", 0, "", 1, 1.0, 3.0, None),
        ("a", 2, "copy", 2, 0.5, 5.0, None),
    ]


def test_how_trials_ended(tmp_path: Path) -> None:
    lines = [line(trial, epoch, {}) for epoch in (1, 2) for trial in "abcd"]
    lines[-1]["status"] = "diverged"
    events = [{EVENT: FAILED, "trial_id": trial, "reason": "no"} for trial in ("a", "d", "never reported")]
    recorded = read(tmp_path, [*lines, *events, {EVENT: FINISHED, "trial_id": "b"}])
    assert recorded.failures == dict.fromkeys(("a", "d", "never reported"), "no")
    for over, end in ((True, "stopped"), (False, "running")):
        status = report_rows(recorded, over=over)["status"].tolist()
        assert status == ["running"] * 4 + ["failed", "finished", end, "diverged"]


def test_constants_copies_and_replays(tmp_path: Path) -> None:
    copied = {
        EVENT: COPIED,
        "values": {},
        "trial_id": "a",
        "segment": "s",
        "parent_trial_id": "b",
        "epoch": 5,
        "step": 55,
    }
    lines = [
        line("a", 1, {"x": 0.1, "y": 1.0}),
        line("b", 1, {"x": 0.2, "y": 2.0}),
        line("a", 2, {"x": 0.1, "y": 1.0}),
        copied | {"sources": {"x": "exploit", "y": "explore"}},
        line("a", 6, {"x": 0.2, "y": 2.4}, "s", parent_trial_id="b"),
        line("a", 7, {"x": 0.2, "y": 2.4}, "s", parent_trial_id="b"),
        line("b", 2, {"x": 0.2, "y": 3.0}),  # a scheduler changed it, for a reason of its own
    ]
    table = schedule_rows(read(tmp_path, lines))
    assert list(table) == SCHEDULE_SCHEMA.names[3:]
    assert rows(table, "trial_id", "parent_trial_id", "step", "epoch", "hp", "value", "source") == [
        ("a", None, 0, 0, "x", 0.1, "fixed"),
        ("a", None, 0, 0, "y", 1.0, "fixed"),
        ("b", None, 0, 0, "x", 0.2, "fixed"),
        ("b", None, 0, 0, "y", 2.0, "fixed"),
        ("a", "b", 55, 5, "x", 0.2, "exploit"),
        ("a", "b", 55, 5, "y", 2.4, "explore"),
        ("b", None, 10, 0, "y", 3.0, "replay"),
    ]
    assert table["raw"].isna().all()
    assert table["scale"].isna().all()


def test_a_hyperparameter_that_a_trial_does_not_have_has_no_row(tmp_path: Path) -> None:
    table = schedule_rows(read(tmp_path, [line("a", 1, {"x": 0.1}), line("b", 1, {"y": 0.2})]))
    assert rows(table, "trial_id", "hp") == [("a", "x"), ("b", "y")]


def tuned(trial: str, epoch: int, x: float, **more: Any) -> dict[str, Any]:
    return line(trial, epoch, {"x": x}, **{"scale/x": 0.5 * epoch} | more)


def test_what_a_trial_tunes_itself_is_as_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    table = schedule_rows(read(tmp_path, [tuned("a", 1, 0.1), tuned("a", 2, 0.1), tuned("a", 3, 0.3)]))
    assert rows(table, "step", "epoch", "value", "scale", "source") == [
        (10, 0, 0.1, 0.5, "stn"),
        (30, 2, 0.3, 1.5, "stn"),
    ]


def own_part(trial: str, sources: Sequence[str], hps: Sequence[str] = ("x",)) -> pd.DataFrame:
    entries = [
        {"step": 4 * at, "epoch": 0, "hp": hp, "value": float(at), "raw": 0.0, "scale": 1.0, "source": source}
        for at, source in enumerate(sources)
        for hp in hps
    ]
    return pd.DataFrame(entries).assign(trial_id=trial, until=entries[-1]["step"])


def test_own_schedules_are_in_the_order_of_the_reports_whatever_that_of_the_trials(tmp_path: Path) -> None:
    """Tune lists the trials of a restored run in another order."""
    lines = [line("b", 1, {"x": 0.5}), line("a", 1, {"x": 0.4}), line("b", 2, {"x": 0.6}), line("a", 2, {"x": 0.3})]
    a, b = own_part("a", ["start", "stn"]), own_part("b", ["start", "stn"])
    one, other = (schedule_rows(read(tmp_path, lines), pd.concat(parts)) for parts in ((a, b), (b, a)))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert one["trial_id"].drop_duplicates().tolist() == ["b", "a"]
    assert one.groupby("trial_id")["step"].apply(lambda steps: steps.is_monotonic_increasing).all()


def test_a_trials_own_schedule_replaces_the_rows_as_far_as_it_goes(tmp_path: Path) -> None:
    lines = [tuned(trial, epoch, 0.1 * epoch) for epoch in (1, 2) for trial in ("a", "b")]
    own = own_part("a", ["start", "stn", "stn", "stn"])  # steps 0 to 12
    table = schedule_rows(read(tmp_path, lines), own)
    expected = [("a", 0, "start"), ("a", 4, "stn"), ("a", 8, "stn"), ("a", 12, "stn"), ("a", 20, "stn")]
    expected += [("b", 10, "stn"), ("b", 20, "stn")]
    assert rows(table, "trial_id", "step", "source") == expected
    assert len(schedule_rows(read(tmp_path, lines), own[:0])) == 4
    # The checkpoint is of the report at step 20: its last hyper-step was earlier, and nothing came after it.
    assert rows(schedule_rows(read(tmp_path, lines), own.assign(until=20)), "trial_id", "step", "source") == [
        row for row in expected if row != ("a", 20, "stn")
    ]


def test_who_was_taken_over_is_told_by_the_copies(tmp_path: Path) -> None:
    copied = [
        {
            EVENT: COPIED,
            "values": {},
            "trial_id": trial,
            "segment": segment,
            "parent_trial_id": parent,
            "epoch": 1,
            "step": 1,
        }
        | {"sources": {}, "values": {}}
        for trial, segment, parent in (("a", "1", "b"), ("c", "1", "d"), ("a", "2", "c"))
    ]
    own = pd.concat(
        [
            own_part("a", ["start", "exploit", "stn", "exploit", "explore"], hps=("x", "y")),
            own_part("b", ["start", "stn"], hps=("x", "y")),
        ],
        ignore_index=True,
    )
    table = schedule_rows(read(tmp_path, copied), own)
    assert rows(table[table["hp"] == "x"], "trial_id", "parent_trial_id") == [
        *(("a", None), ("a", "b"), ("a", "b"), ("a", "c"), ("a", "c")),
        *(("b", None), ("b", None)),
    ]
    assert rows(table[table["hp"] == "y"], "parent_trial_id") == rows(table[table["hp"] == "x"], "parent_trial_id")


def test_only_the_schedule_is_read_of_the_newest_checkpoints(tmp_path: Path) -> None:
    def trial(name: str, sources: Sequence[str] | None, metadata: dict[bytes, str] | None = None) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        if sources is not None:
            part = own_part(name, sources).drop(columns=["trial_id", "until"])
            table = pa.Table.from_pandas(part, preserve_index=False)
            pq.write_table(table.replace_schema_metadata(metadata), folder / SCHEDULE_FILE)
        return SimpleNamespace(
            trial_id=name, checkpoint=SimpleNamespace(path=str(folder), filesystem=LocalFileSystem())
        )

    nothing = SimpleNamespace(trial_id="d", checkpoint=None)
    trials = [
        trial("a", ["start", "stn"], {UNTIL: "7", TRIAL: "a"}),
        trial("b", ["fixed"]),
        trial("c", None),
        nothing,
        trial("e", ["replay"]),
    ]
    trials += [trial("copy", ["start", "stn"], {UNTIL: "4", TRIAL: ""}), trial("child", ["start"], {TRIAL: "a"})]
    found = read_own_schedules(trials)
    assert rows(found, "trial_id", "source", "until") == [("a", "start", 7), ("a", "stn", 7), ("e", "replay", 0)]
    assert read_own_schedules([nothing]).empty


def test_a_damaged_schedule_of_ones_own_is_an_error_and_that_of_others_is_passed_over(tmp_path: Path) -> None:
    """A run that follows would take what the reports know of it, which is less, and give other results."""
    part = own_part("a", ["start", "stn"]).drop(columns=["trial_id", "until"])
    path = tmp_path / SCHEDULE_FILE
    pq.write_table(pa.Table.from_pandas(part, preserve_index=False), path)
    path.write_bytes(path.read_bytes()[:-20])
    trial = SimpleNamespace(
        trial_id="a", checkpoint=SimpleNamespace(path=str(tmp_path), filesystem=LocalFileSystem())
    )  # fmt: skip
    assert read_own_schedules([trial]).empty
    with pytest.raises(ValueError, match=r"checkpoint of trial a is damaged \(.*\); delete it"):
        read_own_schedules([trial], advice="delete it")
