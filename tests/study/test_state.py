"""What is missing of a run, from its state folder alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tune_stn.study.begun import BEGUN, read_begun
from tune_stn.study.seal import DONE, read_done
from tune_stn.study.state import (
    NAME,
    foreign_path,
    has_result,
    known_name,
    restarts_of,
    state_folder,
    why_incomplete,
)
from tune_stn.tuning.recording.journal import REPORTS

RECORD = {"trials": 1, "cost_total": 2.0, "failures": {}, "hopeless": False}
GOOD = {"trial_id": "a", "epoch": 1, "val_loss": 0.5, "cost_total": 2.0, "status": "running", "reason": ""}
BAD = GOOD | {"val_loss": math.inf, "status": "diverged", "reason": "the validation loss became nan in epoch 1"}
FAILED = {"trial_id": "b", "@event": "failed", "reason": "RuntimeError: no"}


@pytest.mark.parametrize(
    ("lines", "record", "reason"),
    [
        ([], None, "not begun; resume the study to go on"),
        ([GOOD], None, "not finished: cost 2.0 of 40 so far; resume the study to go on"),
        (
            [GOOD, FAILED],
            None,
            "not finished: cost 2.0 of 40 so far, 1 of its trials failed, the first with: RuntimeError: no; resume "
            "the study to go on",
        ),
        ([GOOD], {}, ""),
        ([GOOD, BAD], {}, ""),
        (
            [BAD, BAD | {"trial_id": "c"}],
            {},
            "no result: 2 of its trials diverged, the first with: the validation loss became nan in epoch 1",
        ),
        (
            [FAILED],
            {"failures": {"b": "RuntimeError: no"}},
            "no result: 1 of its trials failed, the first with: RuntimeError: no",
        ),
        (
            [GOOD, FAILED],
            {"failures": {"b": "RuntimeError: no"}},
            "1 of its trials failed, the first (b) with: RuntimeError: no",
        ),
        (
            [GOOD, FAILED],
            {"failures": {"b": "RuntimeError: no"}, "hopeless": True},
            "given up: one trial after the other failed, the last with: RuntimeError: no",
        ),
        ([], {}, "no result: no trial reported a finite validation loss"),
    ],
)
def test_why_a_run_is_incomplete(
    tmp_path: Path, lines: Sequence[dict[str, Any]], record: dict[str, Any] | None, reason: str
) -> None:
    folder = state_folder(tmp_path, "random", 3)
    folder.mkdir(parents=True)
    (folder / REPORTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if record is not None:
        (folder / DONE).write_text(json.dumps(RECORD | record))
    assert why_incomplete(folder, 40.0) == reason
    assert has_result(folder) == (GOOD in lines)
    assert (read_done(folder) is None) == (record is None)


def test_a_limit_that_is_none_or_passed_is_not_named(tmp_path: Path) -> None:
    """Where trials are counted; and of a control, which is charged with what the run before it has spent."""
    (tmp_path / REPORTS).write_text(json.dumps(GOOD) + "\n")
    for limit in (None, math.inf, 1.5):
        assert why_incomplete(tmp_path, limit) == "not finished: cost 2.0 so far; resume the study to go on"


def test_trials_that_were_started_again_are_named_with_their_tracebacks_as_the_study_sees_them(tmp_path: Path) -> None:
    folder = state_folder(tmp_path, "random", 3)
    folder.mkdir(parents=True)
    event = {"@event": "restarted", "trial_id": "a", "reason": "KeyError: 1", "lines": ["KeyError: 1"], "epoch": 1}
    lines = [event | {"file": "errors/a.txt"}, GOOD, FAILED, event | {"file": None, "epoch": 2}]
    (folder / REPORTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = {"method": "random", "seed": 3, "trial_id": "a", "reason": "KeyError: 1"}
    assert restarts_of("random", 3, folder) == [
        named | {"epoch": 1, "file": "state/random-seed3/errors/a.txt"},
        named | {"epoch": 2, "file": None},
    ]


# What Ray Tune would unpickle ----------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """As two runs leave it, of which the second keeps Tune's state elsewhere."""
    state = tmp_path / "study" / "state"
    (state / "a-seed0" / "tune" / "run").mkdir(parents=True)
    (state / "a-seed0" / "tune" / "run" / "tuner.pkl").touch()
    (state / "b-seed0").mkdir()
    (state / "b-seed0" / "name.txt").write_text("study-b-123")
    (tmp_path / "storage" / "study-b-123").mkdir(parents=True)
    (tmp_path / "storage" / "study-b-123" / "experiment_state.json").touch()
    (tmp_path / "storage" / "of somebody else").mkdir()
    (tmp_path / "study" / "study.json").touch()
    return tmp_path / "study"


@pytest.mark.parametrize(
    "theirs",
    [
        "study",
        "study/study.json",
        "study/state",
        "study/state/a-seed0",
        "study/state/a-seed0/tune/run",
        "study/state/a-seed0/tune/run/tuner.pkl",
        "storage/study-b-123/experiment_state.json",
        "storage/of somebody else",
    ],
)
def test_what_belongs_to_another_user_is_found(study: Path, monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    root, stat = study.parent, Path.stat
    assert foreign_path(study, root / "storage") is None

    def owned(path: Path, **how: Any) -> os.stat_result:
        found = list(stat(path, **how))
        if path == root / theirs:
            found[4] += 1  # the owner
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", owned)
    expected = None if theirs == "storage/of somebody else" else root / theirs
    assert foreign_path(study, root / "storage") == expected
    assert foreign_path(study) == (None if theirs.startswith("storage") else expected)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a loop", "no text"])
@pytest.mark.parametrize("name", [DONE, REPORTS, BEGUN, NAME])
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(tmp_path: Path, name: str, kind: str) -> None:
    """All of a run's own files are read here; a pipe would hang, and a device that never ends take all memory."""
    folder = state_folder(tmp_path, "pbt", 0)
    folder.mkdir(parents=True)
    path = folder / name
    make: dict[str, Callable[[], object]] = {
        "a pipe": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a loop": lambda: path.symlink_to(path),
        "no text": lambda: path.write_bytes(b"\xff\xfe\n"),
    }
    make[kind]()
    if name == DONE:
        assert "done.json is damaged" in why_incomplete(folder)
        return
    read = {REPORTS: why_incomplete, BEGUN: read_begun, NAME: known_name}[name]
    with pytest.raises(ValueError, match=rf"{path.name}.* (is damaged|cannot be read)"):
        read(folder)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "a\0", "..", "."])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / NAME).write_text(name)
    with pytest.raises(ValueError, match=r"name\.txt is damaged; remove .*, and its run begins anew"):
        known_name(tmp_path)
