"""Files that may be damaged: their size before memory is taken for them, and what JSON holds against what it should."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 2**28
"""Of a file that is read whole, unless its reader says otherwise: a thousand times what a study writes."""


MOST_DEEP = 100
"""Lists and objects inside one another: Python copies about three times as many before it gives up."""


@dataclass(frozen=True)
class Kind:
    """What one entry may be: in words, and as a test."""

    words: str
    test: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    # What an int64 or a float holds: other numbers of JSON are thousands of digits long, or true and false.
    return isinstance(value, float) or (type(value) is int and -(2**63) <= value < 2**63)


ANY = Kind("anything", lambda value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number", _is_number)
FINITE = Kind("a finite number", lambda value: _is_number(value) and math.isfinite(value))
COUNT = Kind(
    "a whole number of 0 or more",
    lambda value: _is_number(value) and math.isfinite(value) and value >= 0 and value == math.floor(value),
)
NOTHING = Kind("null", lambda value: value is None)
Shape = Kind | list[Any] | Mapping[str, Any] | tuple[Any, ...]
"""A kind; `[shape]`, a list; `{"key": shape}`, an object, with `"key?"` for a key that may be absent and `"*"` for all
others; `(shape, shape)`, one of them."""


def mismatch(value: Any, shape: Shape, where: str = "") -> str:
    """What is wrong with a value, in words; empty where it has the shape."""
    if isinstance(shape, Kind):
        return "" if shape.test(value) else f"{where or 'it'} is {_shown(value)}, not {shape.words}"
    if isinstance(shape, tuple):
        problems = [mismatch(value, one, where) for one in shape]
        return "" if "" in problems else problems[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where or 'it'} is {_shown(value)}, not a list"
        found = (mismatch(entry, shape[0], f"{where}[{number}]") for number, entry in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(value, dict):
        return f"{where or 'it'} is {_shown(value)}, not an object with keys"
    named = {key.removesuffix("?"): key for key in shape if key != "*"}
    if absent := [key for key, given in named.items() if key == given and key not in value]:
        return f"{where or 'it'} has no {absent[0]!r}"
    inside = f"{where}." if where else ""
    others = shape.get("*", ANY)
    found = (mismatch(value[key], shape[named[key]] if key in named else others, f"{inside}{key}") for key in value)
    return next(filter(None, found), "")


def is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: it may hold half a character, a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(data: bytes, shape: Shape = ANY) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or has another shape; the message says what is wrong.
    """
    try:
        text = data.decode()
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a character, which no file can be written with
            json.dumps(value, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > MOST_DEEP and _is_deep(value):
            raise RecursionError
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEEP} deep") from None
    except ValueError as error:
        raise ValueError(f"no JSON, {error}") from None
    if problem := mismatch(value, shape):
        raise ValueError(problem)
    return value


def _is_deep(value: Any) -> bool:
    layer = [value]
    for _ in range(MOST_DEEP):
        entries = (entry for one in layer for entry in (one.values() if isinstance(one, dict) else one))
        layer = [entry for entry in entries if isinstance(entry, (list, dict))]
    return bool(layer)


def open_regular(path: Path) -> BinaryIO:
    """A file, open to be read: another kind of thing would be waited for, as a pipe, or never end, as a device.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file; the message does not name it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    return path.open("rb")


def read_whole(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The content of a file that may have so many bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more bytes, or is no regular file; the message does not name it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            return file.read()
    raise ValueError(f"it has {size} bytes, where at most {most} are expected")


def read_json(path: Path, shape: Shape, *, advice: str) -> Any:
    """The value in a JSON file of ours.

    Args:
        path: Path of the file.
        shape: Shape that the value must have.
        advice: What to do if the file is damaged.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged; the message names it.
    """
    try:
        return parse_json(read_whole(path), shape)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {advice}") from None


def _shown(value: Any) -> str:
    words = json.dumps(value) if not isinstance(value, (dict, list)) else f"a {type(value).__name__}"
    return words if len(words) < 40 else f"{words[:30]}..."
