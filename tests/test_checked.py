"""What a file of ours holds against what it should: each mismatch in words, and none where there is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tune_stn.checked import COUNT, FINITE, NOTHING, TEXT, Shape, mismatch, parse_json, read_json

SHAPE: Shape = {"name": TEXT, "seeds": [COUNT], "budget?": (FINITE, NOTHING), "values": {"*": FINITE}}
SOUND = {"name": "a", "seeds": [0, 1], "values": {"x": 0.5}, "more": [None]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"budget": None}, ""),
        ({"name": 3}, "name is 3, not a text"),
        ({"seeds": 3}, "seeds is 3, not a list"),
        ({"seeds": [0, -1]}, "seeds[1] is -1, not a whole number of 0 or more"),
        ({"seeds": [True]}, "seeds[0] is true, not a whole number of 0 or more"),
        ({"seeds": [10**400]}, "seeds[0] is 100000000000000000000000000000..., not a whole number of 0 or more"),
        ({"budget": float("nan")}, "budget is NaN, not a finite number"),
        ({"values": {"x": "1"}}, 'values.x is "1", not a finite number'),
        ({"values": []}, "values is a list, not an object with keys"),
    ],
)
def test_a_mismatch_is_named_by_its_place(change: dict[str, Any], problem: str) -> None:
    assert mismatch({**SOUND, **change}, SHAPE) == problem


def test_a_key_that_is_missing_is_named() -> None:
    assert mismatch({"name": "a"}, SHAPE) == "it has no 'seeds'"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"[" * 100_000, "nested more than 100 deep"), (b"{", "no JSON"), (b"\xff", "no JSON"), (b'"\\ud800"', "no JSON")],
)
def test_what_is_no_json_is_a_value_error(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(data)


@pytest.mark.parametrize("pair", [b"[]", b'{"a":}'])
def test_a_hundred_layers_are_read_and_one_more_is_not(pair: bytes) -> None:
    """Python's parser reads nearly a thousand, which `copy.deepcopy` then fails at."""
    before, after = pair[:-1], pair[-1:]
    parse_json(before * 99 + b"[]" + after * 99)
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        parse_json(before * 100 + b"[]" + after * 100)
    assert parse_json(b"[" + b",".join([b"[]"] * 500) + b"]") == [[]] * 500


def test_a_file_of_tens_of_gigabytes_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.touch()
    os.truncate(path, 40 * 2**30)
    with pytest.raises(ValueError, match=r"study\.json is damaged \(it has \d+ bytes.*\); restore it"):
        read_json(path, SHAPE, advice="restore it")
