"""A record reads its journal once, when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tune_stn.tuning.recording import journal
from tune_stn.tuning.recording.record import Record
from tune_stn.tuning.recording.result_reader import ResultReader


def line(trial: str, cost_total: float) -> dict[str, Any]:
    columns = {"segment": "", "epoch": 1, "val_loss": 1.0, "cost": 1.0, "wall_time_s": 2.0}
    return {"trial_id": trial, "cost_total": cost_total, **columns}


def test_a_record_that_goes_on_is_read_once_and_keeps_what_tune_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.replace(tmp_path / journal.REPORTS, [line("a", 1.0), line("lost", 2.0), line("b", 3.0)])
    read, reads = journal.read_lines, []
    monkeypatch.setattr(journal, "read_lines", lambda path: reads.append(path) or read(path))
    record = Record(tmp_path, ResultReader(), cost_total=0.0, wall_time_s=0.0)
    assert record.ledger is None
    record.open()
    assert record.ledger is not None
    assert record.ledger.cost_total == 3.0
    record.keep({"a": "PENDING", "b": "RUNNING"}, overwrite=False)
    assert (list(record.ledger.latest), record.ledger.cost_total) == (["a", "b"], 2.0)
    assert reads == [record.path]
    record.append(line("c", 3.0))
    assert [kept["trial_id"] for kept in read(record.path)] == ["a", "b", "c"]
    record.keep({"a": "PENDING", "c": "RUNNING"}, overwrite=False)  # what was added since is known, too
    assert [kept["trial_id"] for kept in read(record.path)] == ["a", "c"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record = Record(tmp_path / "file" / "run", ResultReader(), cost_total=0.0, wall_time_s=0.0)
    with pytest.raises(ValueError, match=r"run'\): the directory cannot be made \(Not a directory\); give another"):
        record.open()
