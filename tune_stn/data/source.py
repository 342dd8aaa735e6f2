"""Where data sets lie on a machine, and what is raised where they do not, or are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pooch


class DataError(ValueError):
    """A data set cannot be found, fetched or read; the message names the file and says what to do."""


def env_folder(name: str) -> Path | None:
    """`$TUNE_STN_DATA/<name>`, or None where that is not set."""
    root = os.environ.get("TUNE_STN_DATA")
    return Path(root) / name if root else None


def cache_folder(name: str) -> Path:
    """The folder of a data set in the user's cache."""
    return Path(pooch.os_cache("tune_stn")) / name


def target_folder(folder: str | Path | None, name: str) -> Path:
    """Where to fetch a data set to: the folder given, else the environment's, else the user's cache."""
    return Path(folder).expanduser() if folder is not None else env_folder(name) or cache_folder(name)
