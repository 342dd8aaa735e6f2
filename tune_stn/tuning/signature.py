"""Signatures of what Ray Tune unpickles when a run is resumed, by a key that only the user who wrote it has.

Loading a pickle can run any code. A checksum beside the file would say that it is whole, not who wrote it: whoever can
replace the one can replace the other. So each is signed (HMAC-SHA256) with a key that is kept with the user's own
settings, readable by nobody else, and never with a study.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileType
from ray import tune

from tune_stn.files import whole_file
from tune_stn.tuning.storage import Storage

KEY_FILE = "TUNE_STN_KEY_FILE"  # the environment variable that names another file for the key
SEALS = "tune.seals.json"  # in the state folder of a run
SEALS_VERSION = 1
# Of each file: Ray copies them to its storage in a thread, which may be some savings behind, and a crash may come then.
KEPT = 64
_KEY_BYTES = 32


class NotSealed(ValueError):
    """What Ray Tune would unpickle has no signature of this user's."""


class NoKey(ValueError):
    """The user's key cannot be read or made, or others can read it."""


def key_path() -> Path:
    """Where the key is: in `$TUNE_STN_KEY_FILE`, or else `tune-stn/key` in `$XDG_CONFIG_HOME` or `~/.config`."""
    if given := os.environ.get(KEY_FILE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "tune-stn" / "key"


def own_key() -> bytes:
    """The user's key, made when it is first asked for.

    Raises:
        NoKey: it cannot be read or made, is no key, or is not the user's alone.
    """
    path = key_path()
    advice = f"name another file by {KEY_FILE}"
    try:
        if not path.exists():
            _make_key(path)
        found, content = path.stat(), path.read_text()
    except (OSError, RuntimeError, ValueError) as error:  # no home; no text
        raise NoKey(f"the key {path} cannot be read or made ({error}); {advice}") from None
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
        raise NoKey(f"the key {path} is not yours alone: remove it for a new one, or {advice} (of mode 0600)")
    try:
        key = bytes.fromhex(content)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise NoKey(f"{path} is no key of tune_stn: remove it for a new one, or {advice}")
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unseen = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    unseen.touch(mode=0o600, exist_ok=False)
    try:
        with unseen.open("w") as file:
            file.write(secrets.token_bytes(_KEY_BYTES).hex())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(unseen, path)
        except FileExistsError:
            pass  # another process was first, and its key counts
        except OSError:  # a file system without links
            os.replace(unseen, path)
    finally:
        unseen.unlink(missing_ok=True)


def sign(name: str, data: bytes, key: bytes) -> str:
    """The signature of data under a name."""
    return hmac.new(key, name.encode() + b"\0" + data, hashlib.sha256).hexdigest()


def is_signed(name: str, data: bytes, signature: object, key: bytes) -> bool:
    """Whether a signature is that of the data under the name."""
    return isinstance(signature, str) and hmac.compare_digest(sign(name, data, key).encode(), signature.encode())


class Sealer(tune.Callback):
    """Signs Ray Tune's state of a run each time that it is saved, before it goes to the storage.

    Args:
        path: Path of the file with the signatures.
        key: Key of the user.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key
        self._trials: Sequence[Any] = ()
        self._files = _read_seals(path, key) or {}
        _write_seals(path, self._files, key)

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        self._trials = trials  # to which Tune adds

    def get_state(self) -> dict[str, Any] | None:
        """Asked when Tune has written all else; has no state itself, so nobody need trust one."""
        if self._trials:
            folder, before = Path(self._trials[0].local_experiment_path), json.dumps(self._files)
            for file in folder.iterdir():
                if _is_loaded(file.name) and file.is_file():
                    _add(self._files, file.name, sign(file.name, file.read_bytes(), self._key))
            if json.dumps(self._files) != before:
                _write_seals(self.path, self._files, self._key)
        return None


def check_state(path: Path, storage: Storage, name: str, key: bytes) -> str:
    """What of Ray Tune's saved state of a run does not fit its signatures; empty if all of it does, or there is none.

    What does not fit although the signatures are this user's is damaged, or was put there by somebody else.

    Args:
        path: Path of the file with the signatures.
        storage: Storage of the run.
        name: Name of the run's experiment there.
        key: Key of the user.

    Raises:
        NotSealed: there are no signatures, or not by this key.
    """
    state = _state(storage, name)
    if not state:
        return ""
    signed = _read_seals(path, key)
    if signed is None:
        what = f"is not by the key in {key_path()}" if path.exists() else "is missing"
        raise NotSealed(f"{storage.path}/{name} holds pickles, which can run any code, and their seal {path} {what}")
    wrong = [
        file for file, data in state.items() if not any(is_signed(file, data, one, key) for one in signed.get(file, ()))
    ]
    return ", ".join(wrong)


def seal_state(path: Path, storage: Storage, name: str, key: bytes) -> int:
    """Sign Ray Tune's saved state of a run as it is now, for a user who says that it is to be trusted; how many files.

    Arguments are those of `check_state`.
    """
    state = _state(storage, name)
    if state:
        _write_seals(path, {file: [sign(file, data, key)] for file, data in state.items()}, key)
    return len(state)


def _state(storage: Storage, name: str) -> dict[str, bytes]:
    """The files that Tune may load when it resumes an experiment, with their content."""
    selector = FileSelector(f"{storage.path}/{name}", allow_not_found=True)
    found = {}
    for one in storage.filesystem.get_file_info(selector):
        if one.type == FileType.File and _is_loaded(one.base_name):
            with storage.filesystem.open_input_stream(one.path) as file:
                found[one.base_name] = file.read()
    return found


def _is_loaded(name: str) -> bool:
    return name.endswith((".json", ".pkl")) and not name.startswith(".")  # those are half-written


def _add(files: dict[str, list[str]], name: str, signature: str) -> None:
    known = files.setdefault(name, [])
    if signature not in known:
        known.append(signature)
        del known[:-KEPT]


def _read_seals(path: Path, key: bytes) -> dict[str, list[str]] | None:
    """Name -> the signatures that it has had; None unless the file is there, whole and by this key."""
    try:
        content = json.loads(path.read_bytes())
        files: dict[str, list[str]] = content["files"]
        known = content["version"] == SEALS_VERSION and is_signed(SEALS, _plain(files), content["signature"], key)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if known else None


def _write_seals(path: Path, files: Mapping[str, Sequence[str]], key: bytes) -> None:
    content = {"version": SEALS_VERSION, "files": files, "signature": sign(SEALS, _plain(files), key)}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content))


def _plain(files: object) -> bytes:
    return json.dumps(files, sort_keys=True).encode()
