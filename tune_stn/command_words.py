"""Errors of the Python functions in the words of the command line: `budget=0` becomes `--budget 0`."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Mapping

# What follows an argument's name: a text, list or mapping as Python writes it, or a bare word, whose last stop or colon
# is the sentence's; nothing where only the name is meant.
_VALUE = r"(?P<value>'[^']*'|\[[^\]]*\]|\{[^}]*\}|[^\s,;)`]+?(?=[:.]*(?:[\s,;)`]|$)))?"


def in_options(text: str, options: Mapping[str, str], flags: Collection[str], settings: Container[str]) -> str:
    """A text in which arguments are called as on the command line.

    Arguments are found by their names with an equals sign, at the beginning of a word; those inside a call
    (`Splits(train=...)`) and names that are none stay as they are.

    Args:
        text: Text with arguments in Python's words, `budget=0` with a value or `budget=` without.
        options: Name of an argument -> its option ("budget" -> "--budget").
        flags: Names among them whose option takes no value.
        settings: Names of settings of the task, which `--set` takes.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"] or ""
        if name not in options:  # None in a call
            return f"--set {name}={value}" if name in settings else match[0]
        given = "" if name in flags else _as_given(value)
        return f"{options[name]} {given}" if given else options[name]

    call, argument = r"\w\([^()]*\)", rf"(?<![\w.\[{{'\"=/-])(?P<name>[a-z_]+)={_VALUE}"
    return re.sub(f"{call}|{argument}", option, text)


def _as_given(value: str) -> str:
    """A value as one writes it behind an option: `a,b` for a list, `key=value` for an entry of a mapping."""
    if value.startswith(("[", "{")):
        value = value[1:-1].replace("': ", "=").replace(", ", ",")
    return value.replace("'", "")
