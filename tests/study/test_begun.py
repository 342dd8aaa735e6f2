"""A study goes on without its `study.json` if each of its runs was begun by the same arguments, and not otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tune_stn.study.arguments import check_directory
from tune_stn.study.begun import BEGUN, begun_with, read_begun, write_begun
from tune_stn.study.checks import check_same_study
from tune_stn.study.compare import compare
from tune_stn.study.state import state_folder
from tune_stn.tuning.recording.journal import REPORTS

STUDY: dict[str, Any] = {
    **{"schema_version": 1, "task": "ridge", "task_given": "ridge", "budget": 9.0, "trials": None},
    **{"settings": {"epochs": 3}, "slots_per_run": 1, "method_settings": {"pbt": {"interval": 2}}},
    **{"methods": ["pbt", "random"], "seeds": [0, 1]},
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The directory of a study of which two of four runs have begun."""
    for method, seed in (("pbt", 0), ("random", 1)):
        folder = state_folder(tmp_path, method, seed)
        folder.mkdir(parents=True)
        (folder / REPORTS).touch()
        write_begun(folder, begun_with(STUDY, method, seed))
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    return tmp_path


def lose(out: Path, content: str | None) -> None:
    if content is None:
        (out / "study.json").unlink()
    else:
        (out / "study.json").write_text(content)


LOST = [None, "", "{", "[1, 2]", "null", "{}", json.dumps({**STUDY, "seeds": "x"})]


@pytest.mark.parametrize("content", LOST)
def test_a_lost_description_is_written_anew_by_the_arguments_of_the_runs(out: Path, content: str | None) -> None:
    assert check_same_study(out, STUDY, resume=True) == ""
    lose(out, content)
    lost = check_same_study(out, STUDY, resume=True)
    assert lost.startswith(f"{out / 'study.json'} is {'missing' if content is None else 'damaged'}")
    with pytest.raises(ValueError, match=r"add resume=True"):  # nor is a new study begun among its runs
        check_directory(out, resume=False, retry_failed=False)


@pytest.mark.parametrize(
    "change",
    [
        {"budget": 10.0},
        {"settings": {"epochs": 4}},
        {"settings": {}},
        {"task": "digits-mlp"},
        {"task_given": "mine:ridge"},
        {"trials": 3},
        {"slots_per_run": 2},
        {"method_settings": {}},
        {"seeds": [0]},
        {"methods": ["pbt"]},
    ],
)
def test_by_other_arguments_it_is_refused(out: Path, change: dict[str, Any]) -> None:
    """Runs that these arguments do not ask for among them: who gave the others by mistake would lose them."""
    lose(out, None)
    with pytest.raises(ValueError, match=r"was begun with|do not ask for the run in"):
        check_same_study(out, {**STUDY, **change}, resume=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not say what it was begun with, as an earlier version wrote it"),
        ("{", "is damaged"),
        (json.dumps({"method": "pbt", "seed": 0}), "its checksum does not match"),
    ],
)
def test_runs_that_do_not_say_are_refused_without_a_description(out: Path, content: str | None, words: str) -> None:
    path = state_folder(out, "pbt", 0) / BEGUN
    path.unlink() if content is None else path.write_text(content)
    assert check_same_study(out, STUDY, resume=True) == ""
    lose(out, "{")
    with pytest.raises(ValueError, match=rf"study\.json is damaged.*{words}.*restore study\.json from a copy"):
        check_same_study(out, STUDY, resume=True)


def test_any_change_of_what_a_run_was_begun_with_is_seen(out: Path) -> None:
    path = state_folder(out, "pbt", 0) / BEGUN
    sound, content = read_begun(path.parent), path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            found = read_begun(path.parent)
        except ValueError:
            continue
        assert found == sound, at


def test_a_run_of_another_study_is_not_taken(out: Path) -> None:
    """As of a folder that was copied there: its results would be in the tables of this one."""
    write_begun(state_folder(out, "pbt", 0), begun_with({**STUDY, "settings": {"epochs": 30}}, "pbt", 0))
    with pytest.raises(ValueError, match=r"pbt-seed0 was begun with settings \{'epochs': 30\}, not .*another study"):
        check_same_study(out, STUDY, resume=True)


@pytest.mark.parametrize("content", ["{", "[1, 2]", "null"])
def test_a_file_of_that_name_without_runs_is_left_alone(tmp_path: Path, content: str) -> None:
    lose(tmp_path, content)
    with pytest.raises(ValueError, match=r"study\.json is damaged.*no run of a study is there.*choose another out="):
        compare("digits-mlp", ["fixed"], budget=1, seeds=1, out=tmp_path, resume=True)
    assert (tmp_path / "study.json").read_text() == content
