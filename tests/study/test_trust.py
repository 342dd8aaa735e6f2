"""Whose state of Ray Tune's a resumed study loads, and what is said of all other."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from pyarrow.fs import LocalFileSystem

from tune_stn.cli import main
from tune_stn.methods import get_method
from tune_stn.study.compare import _waiting
from tune_stn.study.mend import Mending
from tune_stn.study.progress import Progress
from tune_stn.study.run import Run
from tune_stn.study.seal import write_done
from tune_stn.study.state import NAME, state_folder
from tune_stn.study.trust import check_sealed, goes_on, trust
from tune_stn.tasks import get_task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recording.journal import REPORTS, append
from tune_stn.tuning.signature import SEALS, own_key, seal_state
from tune_stn.tuning.storage import Storage

REPORT = {"trial_id": "a", "epoch": 1, "val_loss": 0.5, "cost_total": 2.0, "status": "running"}
STATES = ("experiment_state-1.json", "basic-variant-state-1.json")


def run_payload() -> None:
    Payload.loaded.append("ran")


class Payload:
    """What a pickle runs when it is loaded."""

    loaded: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return run_payload, ()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tmp_path / "study"


def make_run(study: Path, name: str = "random", *, sealed: bool = True, done: bool = False) -> Run:
    """A run that has begun, with Tune's state of it, signed or not."""
    folder = state_folder(study, name, 0)
    experiment = folder / "tune" / "study-random-1"
    experiment.mkdir(parents=True)
    append(folder / REPORTS, REPORT)
    (folder / NAME).write_text(experiment.name)
    for state in STATES:
        (experiment / state).write_bytes(pickle.dumps(Payload()))
    if sealed:
        seal_state(folder / SEALS, Storage(LocalFileSystem(), str(folder / "tune")), experiment.name, own_key())
    if done:
        write_done(folder, {"trials": 1, "cost_total": 2.0, "failures": {}, "hopeless": False}, reports=1, schedule=0)
    task, method = get_task("ridge"), get_method(name)
    return Run(task=task, config={}, method=method, seed=0, budget=9.0, trials=None, folder=folder)


def test_a_study_of_ones_own_is_gone_on_with_wherever_it_was_moved(study: Path) -> None:
    run = make_run(study)
    check_sealed([run], Cluster(), own_key(), retry_failed=False)
    shutil.move(study, study.with_name("moved"))
    moved = Run(**{**vars(run), "folder": state_folder(study.with_name("moved"), "random", 0)})
    check_sealed([moved], Cluster(), own_key(), retry_failed=False)


@pytest.mark.parametrize("how", ["never signed", "by another key"])
def test_what_somebody_else_wrote_is_refused_until_it_is_trusted(
    study: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = make_run(study, sealed=how == "by another key")
    monkeypatch.setenv("TUNE_STN_KEY_FILE", str(study.parent / "key"))
    with pytest.raises(ValueError, match=r"^resume=True: .*tune/study-random-1 holds pickles") as caught:
        check_sealed([run], Cluster(), own_key(), retry_failed=False)
    assert f"`tune-stn trust {study}` says so; if not, remove {run.folder}, and its run begins anew" in str(
        caught.value
    )
    done = CliRunner().invoke(main, ["trust", str(study)], catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (0, f"signed: {run.folder}\n")
    check_sealed([run], Cluster(), own_key(), retry_failed=False)
    assert Payload.loaded == []


def test_a_storage_elsewhere_is_looked_at_too(study: Path, tmp_path: Path) -> None:
    run = make_run(study, sealed=False)
    shutil.move(run.folder / "tune", tmp_path / "storage")
    elsewhere = Cluster(storage_path=str(tmp_path / "storage"))
    with pytest.raises(ValueError, match="holds pickles"):
        check_sealed([run], elsewhere, own_key(), retry_failed=False)
    assert trust(study, str(tmp_path / "storage")) == [run.folder]
    check_sealed([run], elsewhere, own_key(), retry_failed=False)


def test_what_tune_does_not_load_need_not_be_signed(study: Path) -> None:
    """Finished runs, those of methods that begin anew, and those that have not begun."""
    runs = [make_run(study, sealed=False, done=True), make_run(study, "hyperband", sealed=False)]
    task, method = get_task("ridge"), get_method("tpe")
    folder = state_folder(study, "tpe", 0)
    runs.append(Run(task=task, config={}, method=method, seed=0, budget=9.0, trials=None, folder=folder))
    check_sealed(runs, Cluster(), own_key(), retry_failed=True)
    assert [goes_on(run, None) for run in runs] == [False, True, True]
    assert not goes_on(runs[1], Mending("", anew=True))
    assert goes_on(runs[0], Mending("", anew=False))


def test_a_state_that_was_tampered_with_is_not_loaded_and_its_run_begins_anew(study: Path) -> None:
    run = make_run(study)
    (run.folder / "tune" / "study-random-1" / "searcher-state-9.pkl").write_bytes(pickle.dumps(Payload()))
    check_sealed([run], Cluster(), own_key(), retry_failed=False)  # the signatures are this user's own
    progress = Progress(lambda line: None, total=1)
    [waiting] = _waiting([run], progress, Cluster(), costs={"random": 9.0}, retry_failed=False, key=own_key())
    assert waiting.again == Mending("Ray Tune's state of it is damaged (searcher-state-9.pkl)", anew=True)
    assert Payload.loaded == []
    for state in (run.folder / "tune" / "study-random-1").iterdir():
        pickle.loads(state.read_bytes())  # noqa: S301 (written above)
    assert Payload.loaded == ["ran"] * 3  # as would have been, had they been


def test_there_must_be_something_to_trust(tmp_path: Path) -> None:
    (tmp_path / "searcher-state-1.pkl").write_text(json.dumps({"version": 1}))
    with pytest.raises(ValueError, match="no state of Ray Tune's is there"):
        trust(tmp_path)
