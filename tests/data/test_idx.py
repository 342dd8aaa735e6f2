"""The idx reader: round trips, and files damaged in every way we could think of."""

from __future__ import annotations

import gzip
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tune_stn.data.idx import read_idx
from tune_stn.data.source import DataError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
TINY = np.arange(24, dtype="u1").reshape(2, 3, 4)


def to_idx(array: np.ndarray[Any, Any]) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def read_bytes(content: bytes) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some-idx"
        path.write_bytes(content)
        return read_idx(path)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("zipped", [False, True])
def test_round_trip_of_every_element_type(kind: str, zipped: bool) -> None:
    array = np.array([[0, 1, 2], [100, 101, 102]], dtype=kind)
    content = to_idx(array)
    read = read_bytes(gzip.compress(content) if zipped else content)
    assert read.dtype == torch.from_numpy(array).dtype
    assert read.tolist() == array.tolist()


@settings(max_examples=30)
@given(
    array=npst.arrays("u1", npst.array_shapes(max_dims=4, max_side=5)),
    zipped=st.booleans(),
)
def test_round_trip_of_any_shape(array: np.ndarray[Any, Any], zipped: bool) -> None:
    content = to_idx(array)
    read = read_bytes(gzip.compress(content) if zipped else content)
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), array)


def test_result_is_writable_and_larger_than_a_chunk() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 1000, 1000), dtype="u1")
    read = read_bytes(gzip.compress(to_idx(array), compresslevel=1))
    assert np.array_equal(read.numpy(), array)
    read[0, 0, 0] = 7
    assert int(read[0, 0, 0]) == 7


def header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


GOOD = to_idx(TINY)
ZIPPED = gzip.compress(GOOD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(gzip.compress(b""), "empty", id="empty gzip"),
        pytest.param(b"<html><body>404</body></html>", "not an idx file", id="web page"),
        pytest.param(gzip.compress(b"label,pixel1\n1,2\n"), "not an idx file", id="gzipped text"),
        pytest.param(b"\0\0\x07\1" + GOOD[4:], "not an idx file", id="element type"),
        pytest.param(b"\0\0\x08\0", "not an idx file", id="no dimensions"),
        pytest.param(b"\0\0\x08\xff" + bytes(2000), "not an idx file", id="255 dimensions"),
        pytest.param(GOOD[:9], "inside the header", id="cut in the header"),
        pytest.param(GOOD[:-1], "24 bytes, but there are only 23", id="cut in the data"),
        pytest.param(header(2, 3, 4), "only 0", id="cut after the header"),
        pytest.param(GOOD + b"\0", "24 bytes, but there are more", id="too long"),
        pytest.param(header(0, 28, 28), "empty", id="no examples"),
        pytest.param(header(*[2**32 - 1] * 8) + bytes(9), "at most 1073741824", id="promises the moon"),
        pytest.param(gzip.compress(header(5) + bytes(50 << 20)), "more", id="gzip bomb"),
        pytest.param(ZIPPED[:-12], "ended before", id="gzip cut"),
        pytest.param(ZIPPED[:5], "ended before", id="gzip cut in its header"),
        pytest.param(ZIPPED[:-8] + bytes(8), "CRC", id="gzip checksum"),
        pytest.param(ZIPPED[:10] + b"\xff" * 20, "decompress", id="gzip damaged"),
        pytest.param(ZIPPED + b"junk", "gzip", id="junk after gzip"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert text.endswith("fetch the file again")
    assert "\n" not in text


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: No such file"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DataError, match="directory"):
        read_idx(tmp_path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_data_error_or_a_tensor(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([GOOD, ZIPPED])))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    with suppress(DataError):  # and nothing else
        assert isinstance(read_bytes(bytes(content)), torch.Tensor)
