"""The idx format of MNIST and its kin: a big-endian header, then one array; often inside gzip.

Header: two zero bytes, one byte for the element type, one for the number of dimensions, then one uint32 per
dimension (LeCun, Cortes and Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from tune_stn.data.source import DataError

_ELEMENT_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
# No data set in this format has more than four; a damaged header may claim 255, past what numpy can hold.
_MAX_DIMENSIONS = 8
_MOST_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20


def read_idx(path: Path, *, sha256: str | None = None, most: int = _MOST_BYTES) -> Tensor:
    """The array in an idx file, gzipped or not (told by the content, not by the name).

    Args:
        path: Path of the file.
        sha256: Checksum of the content, unzipped; None where it is not known.
        most: Largest number of bytes that the array may have.

    Returns:
        CPU tensor with the shape of the header; uint8 for MNIST's unsigned bytes, else int8, int16, int32,
        float32 or float64.

    Raises:
        DataError: the file cannot be opened, is no idx file, has another checksum, or its size differs from what the
            header says, or is above `most`.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _read(raw, sha256, most)
            with gzip.open(raw) as unzipped:
                return _read(unzipped, sha256, most)
    except (OSError, EOFError, zlib.error, _Damaged) as error:
        reason = getattr(error, "strerror", None) or error  # the rest of an OSError repeats the path
        raise DataError(f"{path}: {reason}; fetch the file again") from error


class _Damaged(Exception):
    """What is wrong with the content, in a few words."""


def _read(file: IO[bytes] | gzip.GzipFile, sha256: str | None, most: int) -> Tensor:
    magic = _read_exactly(file, 4)
    element, dimensions = _ELEMENT_TYPES.get(magic[2]), magic[3]
    if magic[:2] != b"\0\0" or element is None or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _Damaged(f"not an idx file (starts with 0x{magic.hex()})")
    sizes = _read_exactly(file, 4 * dimensions)
    shape = struct.unpack(f">{dimensions}I", sizes)
    promised = math.prod(shape) * element.itemsize
    if promised == 0:
        raise _Damaged(f"the header says shape {shape}, which is empty")
    if promised > most:
        raise _Damaged(f"the header says shape {shape}, {promised} bytes, where at most {most} are expected")
    # Grow with what really comes: a damaged header may promise more, a hostile gzip may unpack to terabytes.
    content = bytearray()
    while len(content) <= promised and (chunk := file.read(_CHUNK_BYTES)):
        content += chunk
    if len(content) != promised:
        found = "more" if len(content) > promised else f"only {len(content)}"
        raise _Damaged(f"the header says shape {shape}, {promised} bytes, but there are {found}")
    if sha256 is not None:
        digest = hashlib.sha256(magic + sizes)
        digest.update(content)
        if digest.hexdigest() != sha256:
            raise _Damaged("not the official file, or damaged: its checksum does not match")
    array = np.frombuffer(content, dtype=element).reshape(shape)
    return torch.from_numpy(array.astype(element.newbyteorder("="), copy=False))


def _read_exactly(file: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise _Damaged("ends inside the header" if content else "empty")
    return content
