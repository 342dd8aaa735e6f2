"""The file of JSON lines: what a crash may cost, and what damage says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune_stn.tuning.recording.journal import EVENT, append, cut_torn_end, read_lines, read_reports, replace

LINES = [
    {"trial_id": "a", "epoch": 1, "val_loss": 0.1 + 0.2},
    {EVENT: "failed", "trial_id": "a", "reason": "no\nway"},
    {"trial_id": "b", "epoch": 1, "val_loss": float("inf")},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reports.jsonl"


def test_lines_come_back_in_order_and_exact(path: Path) -> None:
    for line in LINES:
        append(path, line)
    assert list(read_lines(path)) == LINES
    assert read_reports(path) == [LINES[0], LINES[2]]
    replace(path, LINES[1:])
    assert list(read_lines(path)) == LINES[1:]
    assert list(path.parent.iterdir()) == [path]


def test_a_journal_says_its_version_and_that_of_another_is_refused(path: Path) -> None:
    """In the first line, whoever wrote it; one without is of the first version."""
    append(path, LINES[0])
    append(path, LINES[1])
    replace(path.with_name("other"), LINES)
    for one in (path, path.with_name("other")):
        said = [json.loads(line).get("@version") for line in one.read_text().splitlines()]
        assert said == [1] + [None] * (len(said) - 1)
    path.write_text(json.dumps(LINES[0]) + "\n")
    assert read_reports(path) == [LINES[0]]
    path.write_text(json.dumps({**LINES[0], "@version": 2}) + "\n")
    with pytest.raises(ValueError, match=r"reports\.jsonl is of version 2, not 1; use the version of tune_stn"):
        read_reports(path)


def test_no_file_no_lines(path: Path) -> None:
    cut_torn_end(path)
    assert read_reports(path) == []
    assert not path.exists()


def test_a_torn_last_line_is_passed_over_and_cut_off(path: Path) -> None:
    replace(path, LINES)
    whole = path.read_bytes()
    second, third = (whole.index(b"\n", at) + 1 for at in (0, whole.index(b"\n") + 1))
    for cut, left in ((third + 1, 2), (len(whole) - 1, 2), (second + 1, 1), (third, 2), (3, 0), (0, 0)):
        path.write_bytes(whole[:cut])
        assert list(read_lines(path)) == LINES[:left]
        cut_torn_end(path)
        append(path, LINES[2])
        assert list(read_lines(path)) == [*LINES[:left], LINES[2]]


@pytest.mark.parametrize("damage", [b"\xff\xfe", b'{"epoch": 1}', b"[1]", b"7", b'{"trial_id": "a", "epo'])
def test_a_damaged_earlier_line_is_named(path: Path, damage: bytes) -> None:
    replace(path, LINES)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, lines[2]]) + b"\n")
    with pytest.raises(ValueError, match=r"reports\.jsonl, line 2 is damaged .*delete its folder") as caught:
        read_reports(path)
    assert "\n" not in str(caught.value)
