"""Damage by a seed: to bytes, to lines of text, to what JSON holds, and to tables."""

from __future__ import annotations

import copy
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SPARSE_BYTES = 40 * 2**30
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 1e300, -1e300, 10**400, 2**63, 0.5, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "1", "../x", "/", "=1+1", "\0", "\ud800", "é" * 9, "a" * 5000, "NaN", "finished", "stn", "exploit"),
    *([], {}, [1], [[]], {"a": 1}, {"": None}, ["x", 1]),
)


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """A flip, a cut, an insertion, a repetition, zeros, or two stretches swapped; sometimes two of them."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 4, 16, 200)))
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at:end]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 5:
            data[at:at] = data[at:end]
        elif kind == 6:
            data[at:end] = bytes(end - at)
        else:
            other = rng.randrange(len(data) + 1)
            data[at:end], data[other : other + end - at] = data[other : other + end - at], data[at:end]
    return bytes(data)


def damaged_text(text: str, rng: random.Random) -> str:
    """Lines deleted, repeated or swapped, or a word of one replaced by a strange one."""
    lines = text.splitlines(keepends=True) or [""]
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[other])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
    else:
        words = lines[at].split(" ")
        words[rng.randrange(len(words))] = str(rng.choice(STRANGE))
        lines[at] = " ".join(words)
    return "".join(lines)


def damaged_value(value: Any, rng: random.Random) -> Any:
    """What JSON holds, with an entry deleted, renamed, nested, or replaced by something strange."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(STRANGE)
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if (isinstance(holder, dict) and key not in holder) or (isinstance(holder, list) and key >= len(holder)):
            continue
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(rng.choice(STRANGE))] = holder.pop(key)
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3:
            holder[key] = _nested(rng.choice((3, 200, 900)))
        elif kind == 4:
            other, there = rng.choice(places)
            try:
                holder[key] = copy.deepcopy(other[there])
            except (KeyError, IndexError):
                holder[key] = None
        else:
            holder[key] = copy.deepcopy(rng.choice(STRANGE))
    return value


def damaged_frame(frame: pd.DataFrame, rng: random.Random) -> pd.DataFrame:
    """A table with a strange cell, rows or columns lost, swapped, repeated or renamed, or strange attributes."""
    columns, row, other = list(frame.columns), rng.randrange(len(frame)), rng.randrange(len(frame))
    at = rng.randrange(len(columns))
    column = columns[at]
    attributes = copy.deepcopy(frame.attrs)
    kind = rng.randrange(10)
    if kind == 0:
        made = frame.drop(columns=column)
    elif kind == 1:
        names = [*columns]
        names[at] = rng.choice(
            (*(one for one in STRANGE if not isinstance(one, (list, dict)) and one != "\ud800"), *columns)
        )
        made = frame.set_axis(names, axis=1)
    elif kind == 2:
        made = frame.drop(index=frame.index[row])
    elif kind == 3:
        made = pd.concat([frame, frame.iloc[[row]]], ignore_index=True)
    elif kind == 4:
        order = [*range(len(frame))]
        order[row], order[other] = order[other], order[row]
        made = frame.iloc[order]
    elif kind == 5:
        made = frame.assign(**{str(column): frame[column].astype(rng.choice(("str", "object", "category")))})
    elif kind == 6:
        made = frame.copy()
        attributes = {**attributes, rng.choice(("integers", "interpolation", "x")): rng.choice(STRANGE)}
    else:
        cells = frame[column].astype(object).tolist()
        cells[row] = copy.deepcopy(rng.choice((*STRANGE, np.float32("nan"), np.int64(-7), pd.NaT, pd.NA, b"x")))
        made = frame.copy()
        made[column] = pd.Series(cells, index=frame.index, dtype=object)
        surrogate = isinstance(cells[row], str) and cells[row] == "\ud800"  # pandas makes no column of such texts
        if rng.random() < 0.5 and not surrogate:
            made = made.infer_objects()
    made.attrs = attributes
    return made


def sparse(path: Path) -> None:
    """A file of tens of GB that takes no room."""
    path.write_bytes(b"")
    os.truncate(path, SPARSE_BYTES)


def payload(mark: Path) -> bytes:
    """A pickle that makes the folder `mark` where somebody unpickles it."""
    return pickle.dumps(_Call(os.mkdir, (str(mark),)))


class _Call:
    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return self.call


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield value, key
        yield from _places(entry)


def _nested(depth: int) -> Any:
    found: Any = []
    for number in range(depth):
        found = [found] if number % 2 else {"a": found}
    return found
