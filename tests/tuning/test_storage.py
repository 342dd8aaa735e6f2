"""Storage for checkpoints: what is accepted, and the marker that nodes look for."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow.fs import FileSystem, FileType, LocalFileSystem, SubTreeFileSystem

from tune_stn.tuning.storage import open_storage


def test_a_folder_is_taken_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_storage("runs").path == str(tmp_path / "runs")
    assert open_storage("~/runs").path == str(tmp_path / "home" / "runs")
    assert open_storage(f"file://{tmp_path}/runs").path == str(tmp_path / "runs")


def test_uris_and_file_systems_of_pyarrow(tmp_path: Path) -> None:
    assert open_storage("mock://bucket/runs").path == "runs"
    assert open_storage("gs://bucket/runs").path == "bucket/runs"
    other = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    assert open_storage("bucket/runs", other).filesystem is other


@pytest.mark.parametrize("path", ["foo://bucket", "s3:/bucket"])
def test_what_pyarrow_cannot_open_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=f"storage_path={path}: accepted is a folder, or a URI"):
        open_storage(path)


@pytest.mark.parametrize("uri", ["mock://bucket/runs", "{}/deep/runs"])
def test_a_marker_is_there_inside_the_block_only(tmp_path: Path, uri: str) -> None:
    storage = open_storage(uri.format(tmp_path))

    def exists(path: str, filesystem: FileSystem = storage.filesystem) -> bool:
        return bool(filesystem.get_file_info(path).type == FileType.File)

    with storage.marker() as one, storage.marker() as other:
        assert one != other
        assert exists(one)
        assert exists(other)
    assert not exists(one)
    assert storage.filesystem.get_file_info(storage.path).type == FileType.Directory


def test_a_storage_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = open_storage(str(tmp_path / "file" / "runs"))
    message = r"storage_path=.*/file/runs: cannot be written to \(.*ot a directory"
    with pytest.raises(ValueError, match=message), storage.marker():
        pass
