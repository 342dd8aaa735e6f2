"""Signatures of what Ray Tune unpickles: whose key it is, what fits, what is refused unseen."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from tune_stn.tuning import signature
from tune_stn.tuning.signature import (
    KEPT,
    KEY_FILE,
    NoKey,
    NotSealed,
    Sealer,
    check_state,
    is_signed,
    key_path,
    own_key,
    seal_state,
    sign,
)
from tune_stn.tuning.storage import Storage

KEY, OTHER = b"k" * 32, b"o" * 32
STATE = ("experiment_state-1.json", "search_gen_state-1.json", "searcher-state-1.pkl")


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "key"
    monkeypatch.setenv(KEY_FILE, str(path))
    return path


# The key --------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_for_its_user_alone(key: Path) -> None:
    made = own_key()
    assert len(made) == 32
    assert own_key() == made
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    assert list(key.parent.iterdir()) == [key]


def test_processes_that_ask_for_the_first_key_at_once_get_the_same_one(key: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(own_key())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert list(key.parent.iterdir()) == [key]


def test_a_file_system_without_links_has_a_key_too(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(signature.os, "link", link)
    assert own_key() == own_key()


@pytest.mark.parametrize("given", [{"XDG_CONFIG_HOME": "/x"}, {}])
def test_it_is_with_the_users_other_settings(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in (KEY_FILE, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert key_path() == Path("/x/tune-stn/key" if given else "/home/me/.config/tune-stn/key")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "others may read it": (lambda path: path.chmod(0o640), "is not yours alone: remove it"),
    "no key": (lambda path: path.write_text("abc"), "is no key of tune_stn"),
    "short": (lambda path: path.write_text("ab" * 8), "is no key of tune_stn"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read or made"),
    "a folder": (lambda path: (path.unlink(), path.mkdir(mode=0o700)), "cannot be read or made"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_key_of_the_users_own_is_refused(key: Path, damage: str) -> None:
    own_key()
    do, words = DAMAGES[damage]
    do(key)
    with pytest.raises(NoKey, match=words) as caught:
        own_key()
    assert KEY_FILE in str(caught.value)


def test_a_signature_is_of_one_name_content_and_key() -> None:
    signature = sign("a", b"bc", KEY)
    assert is_signed("a", b"bc", signature, KEY)
    others: list[tuple[str, bytes, object, bytes]] = [
        ("ab", b"c", signature, KEY),
        ("a", b"bd", signature, KEY),
        ("a", b"bc", signature, OTHER),
        ("a", b"bc", signature[:-1], KEY),
        ("a", b"bc", "é", KEY),
        ("a", b"bc", None, KEY),
    ]
    for other in others:
        assert not is_signed(*other)


# Ray Tune's state of a run --------------------------------------------------------------------------------------------


class Run:
    """A run of Tune's: what it saves lies in a folder of its session, then a copy of that in its storage."""

    def __init__(self, root: Path) -> None:
        self.staging, self.stored, self.seals = root / "session", root / "storage" / "run", root / "seals.json"
        self.storage = Storage(LocalFileSystem(), str(root / "storage"))
        self.staging.mkdir()
        self.trials = [SimpleNamespace(local_experiment_path=str(self.staging))]

    def save(self, sealer: Sealer, content: str) -> None:
        for name in STATE:
            (self.staging / name).write_text(f"{name}: {content}")
        assert sealer.get_state() is None

    def copy(self) -> None:
        self.stored.mkdir(parents=True, exist_ok=True)
        for name in STATE:
            (self.stored / name).write_bytes((self.staging / name).read_bytes())

    def check(self, key: bytes = KEY) -> str:
        return check_state(self.seals, self.storage, "run", key)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def begun(run: Run) -> Sealer:
    sealer = Sealer(run.seals, KEY)
    sealer.on_step_begin(0, run.trials)
    return sealer


def test_what_tune_saved_fits_whenever_a_crash_comes(run: Run) -> None:
    """Its copy may be behind, each file by another number of savings; a resumed run keeps the signatures."""
    sealer = begun(run)
    assert run.check() == ""  # nothing is there yet
    run.save(sealer, "one")
    run.copy()
    assert run.check() == ""
    run.save(sealer, "two")
    assert run.check() == ""
    (run.stored / STATE[1]).write_bytes((run.staging / STATE[1]).read_bytes())
    assert run.check() == ""
    run.save(begun(run), "three")
    assert run.check() == ""
    run.copy()
    assert run.check() == ""


def test_only_so_many_signatures_are_kept(run: Run) -> None:
    sealer = begun(run)
    for number in range(KEPT + 5):
        run.save(sealer, str(number))
    run.copy()
    assert run.check() == ""
    assert {len(one) for one in json.loads(run.seals.read_text())["files"].values()} == {KEPT}


def test_a_state_that_is_damaged_or_was_slipped_in_is_named(run: Run) -> None:
    run.save(begun(run), "one")
    run.copy()
    (run.stored / STATE[0]).write_text("half")
    assert run.check() == STATE[0]
    run.copy()
    (run.stored / "searcher-state-9.pkl").write_bytes(pickle.dumps(1))  # Tune takes that of the last name
    assert run.check() == "searcher-state-9.pkl"
    (run.stored / "searcher-state-9.pkl").write_bytes((run.stored / STATE[2]).read_bytes())
    assert run.check() == "searcher-state-9.pkl"
    (run.stored / "searcher-state-9.pkl").unlink()
    (run.stored / "searcher-state-8.txt").touch()  # which Tune does not look at
    (run.stored / ".tmp-searcher-state-8.pkl").touch()
    (run.stored / "trial_a").mkdir()
    assert run.check() == ""


def test_a_state_without_signatures_or_by_another_key_is_refused(run: Run) -> None:
    run.save(begun(run), "one")
    run.copy()
    with pytest.raises(NotSealed, match=r"storage/run holds pickles.* is not by the key in "):
        run.check(OTHER)
    content = json.loads(run.seals.read_text())
    for forged in (b"", b"[]", b"no json", json.dumps({**content, "files": {}}).encode(), b'{"version": 1}'):
        run.seals.write_bytes(forged)
        with pytest.raises(NotSealed, match="is not by the key"):
            run.check()
    run.seals.unlink()
    with pytest.raises(NotSealed, match=r"seals\.json is missing"):
        run.check()
    assert seal_state(run.seals, run.storage, "run", OTHER) == len(STATE)  # its user says that it is all right
    assert run.check(OTHER) == ""
    with pytest.raises(NotSealed):
        run.check(KEY)


def test_a_run_killed_before_tune_saved_anything_is_its_users_own(run: Run) -> None:
    begun(run)
    run.stored.mkdir(parents=True)
    (run.stored / STATE[0]).write_text("of an instant before the first signature")
    assert run.check() == STATE[0]  # damaged, but not somebody else's


def test_signatures_are_there_before_anything_reaches_the_storage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Tune's own code has it: experiment, searcher, then callbacks, and then the copy begins."""
    from ray.tune.callback import CallbackList

    callbacks = CallbackList([begun(run)])
    for name in STATE:
        (run.staging / name).write_text("one")
    callbacks.save_to_dir(str(run.staging), session_str="1")
    run.copy()
    assert run.check() == ""
    assert sorted(os.listdir(run.staging)) == sorted(STATE)  # and no pickle of callbacks
