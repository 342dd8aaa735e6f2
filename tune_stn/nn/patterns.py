"""Things said about modules by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

T = TypeVar("T")


class Patterns(Generic[T]):
    """Module path, or a pattern such as `"encoder.*"`, -> something; the first that matches counts.

    Args:
        entries: Path or pattern -> something, in the order in which they are tried.
        keyword: Name of the argument that they were given as, for errors.
    """

    def __init__(self, entries: Mapping[str, T], keyword: str) -> None:
        self.entries = dict(entries)
        self.keyword = keyword
        self._unmatched = set(self.entries) - {"*"}

    def match(self, path: str) -> T | None:
        matches = [pattern for pattern in self.entries if fnmatchcase(path, pattern)]
        self._unmatched.difference_update(matches)
        return self.entries[matches[0]] if matches else None

    def check_all_matched(self, what: str, there_are: Iterable[str], hint: str = "") -> None:
        """Raise ValueError, naming the modules to choose from, if an entry has matched none of those asked for.

        Args:
            what: What was asked for, in words.
            there_are: Paths of all there are.
            hint: What else can be done, the end of the message.
        """
        if self._unmatched:
            found = ", ".join(there_are)
            raise ValueError(
                f"{self.keyword} path {sorted(self._unmatched)[0]!r} matches no {what}; there "
                + (f"are: {found}" if found else "is none in this model")
                + hint
            )
