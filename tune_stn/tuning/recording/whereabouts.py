"""Where the record of a run is to be found once Ray Tune has restored the run, maybe moved or on another machine."""

from __future__ import annotations

from pathlib import Path


def moved(directory: Path, *, before: Path, now: Path) -> Path:
    """A directory's place after a move of the experiment's folder, along with which it went if it lay in there."""
    inside = before.resolve()
    return now.resolve() / directory.relative_to(inside) if directory.is_relative_to(inside) else directory


def possible(directory: Path, *, otherwise: Path) -> Path:
    """The directory if it can be made, else one of its name in the experiment's folder, or in the current one.

    Args:
        directory: Wanted directory, which this makes where it can.
        otherwise: The experiment's folder; if that is not on this machine, the current directory takes its place.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return (otherwise if otherwise.is_dir() else Path.cwd()).resolve() / directory.name
    return directory
