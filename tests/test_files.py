"""A file is written whole or not at all, and everything of the package is written that way."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path
from typing import Any

import pytest

import tune_stn
from tune_stn import files
from tune_stn.files import whole_file

PACKAGE = Path(tune_stn.__file__).parent


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_before_the_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a crash of the machine leaves the old file or the new one: never one without its content."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("file" if os.path.isfile(f"/proc/self/fd/{descriptor}") else "folder")
        fsync(descriptor)

    def replaced(*paths: Any) -> None:
        done.append("name")
        replace(*paths)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
        assert not (tmp_path / "a.txt").exists()
    assert done == ["file", "name", "folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.ENOSPC, True), (errno.EIO, True)])
def test_a_file_that_did_not_reach_the_disk_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fails: bool
) -> None:
    """But a file system that cannot sync is no obstacle."""
    path = tmp_path / "a"
    path.write_text("old")

    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fsync)
    try:
        with whole_file(path) as temporary:
            temporary.write_text("new")
    except OSError:
        assert fails
    assert path.read_text() == ("old" if fails else "new")
    assert list(tmp_path.iterdir()) == [path]


# What writes otherwise, and why it may.
ELSEWHERE = {
    ("tuning/recording/journal.py", "open"),  # lines are appended, each synced; a torn end is cut off
    ("tuning/token.py", "write_text"),  # in a folder of its process alone
    ("tuning/signature.py", "open"),  # the key, which must never replace that of another process
    ("study/compare.py", "write_bytes"),  # zeros that keep room
    ("study/plots.py", "savefig"),  # into memory, for a notebook
    ("training/schedule.py", "write_parquet"),  # to a URI, which is no file here
    ("training/tables.py", "write_table"),  # in `write_parquet`, whose calls are looked at
}


@pytest.mark.slow
def test_everything_is_written_through_it() -> None:
    """A call that writes to a path lies in a `with` of `whole_file` or of a folder that is temporary."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        if "testing" in file.relative_to(PACKAGE).parts:
            continue
        tree = ast.parse(file.read_text())
        inside: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.With) and any(
                name in ast.unparse(item.context_expr)
                for item in node.items
                for name in ("whole_file(", "TemporaryDirectory(", "NamedTemporaryFile(")
            ):
                inside |= {id(inner) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in inside and (name := _writes(node)):
                found.add((file.relative_to(PACKAGE).as_posix(), name))
    assert found == ELSEWHERE


WRITERS = {"write_text", "write_bytes", "to_parquet", "write_parquet", "to_csv", "savefig", "save_model", "copyfile"}


def _writes(call: ast.Call) -> str:
    """The name of a call that writes to a path; empty for any other."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if (name in WRITERS and (call.args or call.keywords)) or (
        name == "write_table" and ast.unparse(call.func) == "pq.write_table"
    ):
        return name
    modes = [ast.unparse(argument) for argument in (*call.args, *(one.value for one in call.keywords))]
    is_open = name == "open" and any(mode in ("'w'", "'wb'", "'a'", "'ab'", "'x'") for mode in modes)
    return name if is_open else ""
