"""Where Ray Tune keeps the checkpoints of a run: a folder, or anything else that pyarrow writes to."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSystem

URI = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


@dataclass(frozen=True)
class Storage:
    """A folder on a file system.

    Attributes:
        filesystem: A file system of pyarrow.
        path: Path of the folder, in the file system's own terms (of `s3://bucket/runs`, it is `bucket/runs`).
    """

    filesystem: FileSystem
    path: str

    @contextmanager
    def marker(self) -> Iterator[str]:
        """An empty file with a name of its own, there inside the block; gives its path.

        Raises:
            ValueError: the folder cannot be written to.
        """
        path = f"{self.path}/.tune_stn-{secrets.token_hex(8)}"
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            self.filesystem.open_output_stream(path).close()
        except (OSError, ArrowException) as error:
            raise ValueError(f"storage_path={self.path}: cannot be written to ({error})") from None
        try:
            yield path
        finally:
            self.filesystem.delete_file(path)


def open_storage(path: str, filesystem: FileSystem | None = None) -> Storage:
    """The storage at a folder or URI, or at a path on a given file system.

    Raises:
        ValueError: pyarrow knows no such file system, or cannot reach it.
    """
    if filesystem is not None:
        return Storage(filesystem, path)
    # A folder from the root, for a worker's current directory is another.
    location = path if URI.match(path) else str(Path(path).expanduser().absolute())
    try:
        return Storage(*FileSystem.from_uri(location))
    except (OSError, ArrowException, ImportError) as error:
        accepted = "a folder, or a URI that pyarrow can open, such as s3://bucket/folder or gs://bucket/folder"
        raise ValueError(f"storage_path={path}: accepted is {accepted} ({error})") from None
