"""A finished run whose files no longer fit its closing record is named, and never counted with what is left of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from tune_stn.cli import main
from tune_stn.methods import get_method
from tune_stn.study import seal
from tune_stn.study.collect import metrics_of, write_tables
from tune_stn.study.mend import mending
from tune_stn.study.results import load_results
from tune_stn.study.run import NothingToFollow, Run, read_followed
from tune_stn.study.seal import DONE, SCHEDULE, read_done, why_unfit, write_done
from tune_stn.study.state import failures_of, missing_of, restarts_of, state_folder
from tune_stn.tasks import get_task
from tune_stn.training.tables import STUDY_SCHEMA_VERSION
from tune_stn.tuning.recording.journal import REPORTS, append

TASK = get_task("ridge")
EPOCHS = 6
PLAIN = {"trials": 1, "cost_total": 6.0, "failures": {}, "hopeless": False}


def line(epoch: int, val_loss: float) -> dict[str, Any]:
    return {
        **{"trial_id": "a", "epoch": epoch, "step": 8 * epoch, "cost": float(epoch), "cost_total": float(epoch)},
        **{"wall_time_s": 1.0, "device_time_s": 0.1, "train_loss": 1.0, "val_loss": val_loss, "test_loss": val_loss},
        **{"status": "running", "reason": "", "parent_trial_id": "", "segment": ""},
        **{f"hp/{name}": value for name, value in TASK.start.items()},
        **dict.fromkeys(metrics_of(TASK), 0.5),
    }


def finished(study: Path, seed: int, *, sealed: bool = True) -> Run:
    """A run whose best loss, .184, is its last but one."""
    folder = state_folder(study, "random", seed)
    folder.mkdir(parents=True)
    for epoch in range(1, EPOCHS + 1):
        append(folder / REPORTS, line(epoch, 0.184 if epoch == EPOCHS - 1 else 1.0 / epoch))
    row = {"trial_id": "a", "parent_trial_id": None, "step": 0, "epoch": 0, "hp": "penalty", "value": 3.0}
    pd.DataFrame([row | {"raw": None, "scale": None, "source": "fixed"}]).to_parquet(folder / SCHEDULE, index=False)
    if sealed:
        write_done(folder, PLAIN, reports=EPOCHS, schedule=1)
    else:
        (folder / DONE).write_text(json.dumps(PLAIN))
    method = get_method("random")
    return Run(task=TASK, config={}, method=method, seed=seed, budget=6.0, trials=None, folder=folder)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two finished runs, and their tables."""
    directory = tmp_path / "study"
    make_study(directory, [finished(directory, seed) for seed in (0, 1)])
    return directory


def make_study(directory: Path, runs: list[Run]) -> None:
    about: dict[str, Any] = {"schema_version": STUDY_SCHEMA_VERSION, "task": "ridge", "budget": 6.0}
    about |= {"methods": ["random"], "seeds": [0, 1], "missing": [], "settings": {}, "versions": {}}
    about |= {"metrics": metrics_of(TASK), "hyperparameters": list(TASK.space)}
    (directory / "study.json").write_text(json.dumps(about))
    write_tables(TASK, runs, directory)


def cut(folder: Path) -> None:
    lines = (folder / REPORTS).read_bytes().splitlines(keepends=True)
    (folder / REPORTS).write_bytes(b"".join(lines[:2]))


def flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (cut, "reports.jsonl has 2 of 6 rows"),
    "emptied": (lambda folder: (folder / REPORTS).write_bytes(b""), "reports.jsonl has 0 of 6 rows"),
    "deleted": (lambda folder: (folder / REPORTS).unlink(), "reports.jsonl is missing"),
    "flipped": (flip(REPORTS), "reports.jsonl has other content than was written"),
    "no schedule": (lambda folder: (folder / SCHEDULE).unlink(), "schedule.parquet is missing"),
    "schedule flipped": (flip(SCHEDULE), "schedule.parquet has other content than was written"),
    "record flipped": (flip(DONE), "done.json is damaged"),
    "record cut": (lambda folder: os.truncate(folder / DONE, 9), "done.json is damaged"),
}


def test_what_is_whole_fits(study: Path) -> None:
    folder = state_folder(study, "random", 0)
    record = read_done(folder)
    assert record is not None
    assert record.items() >= PLAIN.items()
    assert record["rows"] == {"reports": EPOCHS, "schedule": 1}
    assert why_unfit(folder) == ""
    assert load_results(study).study["missing"] == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_does_not_fit_is_named_and_its_results_are_those_of_the_tables(study: Path, damage: str) -> None:
    """Without a word, 84 rows were 24, and a best loss of .184 was nan."""
    before, folder = load_results(study), state_folder(study, "random", 1)
    time.sleep(0.01)  # the damage is newer than the tables, as damage is
    do, words = DAMAGES[damage]
    do(folder)
    assert why_unfit(folder) == words
    found = load_results(study)
    [entry] = found.study["missing"]
    assert (entry["method"], entry["seed"], entry["damaged"]) == ("random", 1, True)
    assert words in entry["reason"]
    assert "resume the study" in entry["reason"]
    if damage.startswith("record"):
        assert entry["no_result"]
        return  # it may not have ended: what it reported counts, as of any such run
    for table in ("reports", "schedule", "incumbent"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(before, table), check_exact=True)
    assert "its results here are those of the tables" in entry["reason"]
    assert not entry["no_result"]


def test_where_the_tables_are_gone_too_nothing_is_made_of_what_is_left(study: Path) -> None:
    cut(state_folder(study, "random", 1))
    (study / "reports.parquet").unlink()
    found = load_results(study)
    assert set(found.reports["seed"]) == {0}
    assert set(found.schedule["seed"]) == {0}
    [entry] = found.study["missing"]
    assert "its results are left out" in entry["reason"]
    assert entry["no_result"]
    assert found.summary()["missing"].tolist() == [1]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("command", ["report", "export"])
def test_commands_name_it_and_end_with_1(study: Path, tmp_path: Path, command: str) -> None:
    arguments = [command, str(study), *(["--to", str(tmp_path / "out")] if command == "export" else [])]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    cut(state_folder(study, "random", 1))
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 1
    assert "incomplete: random, seed 1: its files do not fit its seal: reports.jsonl has 2 of 6 rows" in done.stderr
    out = (study / "report.html") if command == "report" else (tmp_path / "out" / "study.json")
    assert "reports.jsonl has 2 of 6 rows" in out.read_text()


def test_a_resumed_study_runs_it_again_and_nothing_is_made_from_it(study: Path) -> None:
    run = Run(
        task=TASK,
        config={},
        method=get_method("random"),
        seed=1,
        budget=6.0,
        trials=None,
        folder=state_folder(study, "random", 1),
    )
    assert mending(run, retry_failed=True) is None
    cut(run.folder)
    found = mending(run, retry_failed=False)
    assert found is not None
    assert (found.why, found.anew) == ("its files do not fit its seal (reports.jsonl has 2 of 6 rows)", True)
    with pytest.raises(NothingToFollow, match=r"does not fit its seal: reports\.jsonl has 2 of 6 rows"):
        read_followed(run)


def test_a_journal_that_does_not_fit_says_nothing_of_failures(study: Path) -> None:
    folder = state_folder(study, "random", 1)
    (folder / REPORTS).write_text('{"trial_id": "z", "@event": "failed", "reason": "invented"}\nno json\n')
    assert failures_of("random", 1, folder) == restarts_of("random", 1, folder) == []
    assert missing_of("random", 1, folder, 6.0)["damaged"]


def test_runs_of_an_earlier_version_are_read_and_said_to_be_unchecked(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    make_study(directory, [finished(directory, 0), finished(directory, 1, sealed=False)])
    cut(state_folder(directory, "random", 1))  # nobody can know
    found = load_results(directory)
    assert found.study["not_sealed"] == ["state/random-seed1"]
    assert found.study["missing"] == []
    done = CliRunner().invoke(main, ["export", str(directory), "--to", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr.count("not sealed: an earlier version wrote state/random-seed1") == 1


def test_a_record_of_another_version_is_refused(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = state_folder(study, "random", 1)
    monkeypatch.setattr(seal, "RECORD_VERSION", 2)
    write_done(folder, PLAIN, reports=EPOCHS, schedule=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"done\.json is of version 2, not 1; use the version of tune_stn"):
        load_results(study)


def test_a_run_that_is_just_gone_on_with_is_not_called_damaged(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that takes a run up again removes its record, then its schedule: a reader may come in between."""
    folder = state_folder(study, "random", 1)
    (folder / SCHEDULE).unlink()
    fingerprint = seal._fingerprint

    def meanwhile(path: Path) -> Any:
        (folder / DONE).unlink(missing_ok=True)
        return fingerprint(path)

    monkeypatch.setattr(seal, "_fingerprint", meanwhile)
    assert why_unfit(folder) == ""
