"""CIFAR-10: 32×32 colour images in ten classes.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". Two of the official versions are read, the
binary one (`data_batch_1.bin`) and the Python one (`data_batch_1`, a pickle). They hold the same images in the same
order, so one table of checksums serves both.
"""

from __future__ import annotations

import hashlib
import pickletools
import tarfile
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

from tune_stn.checked import read_whole
from tune_stn.data.source import DataError, cache_folder, env_folder, target_folder
from tune_stn.data.splits import Split
from tune_stn.files import whole_file

CLASSES = 10
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
# Of the official binary version's files: 10,000 records each, a label and 32×32 red, then green, then blue pixels.
SHA256 = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")  # as the official archives name them
_PIXELS = 3 * 32 * 32
_MOST_BYTES = 2**26  # a file has 31 million


def load(folder: str | Path | None = None) -> tuple[Split, Split]:
    """The official training and test examples.

    Args:
        folder: Folder of the files; default the first place that `find` looks at and that has them.

    Returns:
        `(train, test)`; inputs are uint8 of shape `(n, 3, 32, 32)`, targets int64 of shape `(n,)` in `0 … 9`.

    Raises:
        DataError: the files are not found, or their content is not the official one.
    """
    found = find(folder)
    batches = [_load_batch(found, name) for name in SHA256]
    records = torch.cat(batches[:-1]), batches[-1]
    train, test = (Split(r[:, 1:].reshape(-1, 3, 32, 32), r[:, 0].long()) for r in records)
    return train, test


def find(folder: str | Path | None = None) -> Path:
    """The folder that holds the six files of one version.

    A folder that is given is the only one looked at. Otherwise, in this order: `$TUNE_STN_DATA/cifar10`, the user's
    cache. In each, the files may lie in the folder of the official archive.

    Raises:
        DataError: none has them all; says where it looked and how to get them.
    """
    if folder is not None:
        candidates = [Path(folder).expanduser()]
    else:
        candidates = [place for place in (env_folder("cifar10"), cache_folder("cifar10")) if place is not None]
    for candidate in candidates:
        for place in (candidate, *(candidate / name for name in FOLDERS)):
            if all(_existing(place, name) is not None for name in SHA256):
                return place
    raise DataError(
        f"CIFAR-10 not found in {', '.join(map(str, candidates))}; get it by `tune-stn data cifar10`, "
        f"or unpack the binary or the Python version of {PAGE} and name its folder by `data_dir=FOLDER`"
    )


def fetch(folder: str | Path | None = None, *, progress: bool = True, url: str = URL) -> Path:
    """Download the official binary version and unpack its six files; nothing is fetched where they are already.

    Args:
        folder: Folder to write to; default `$TUNE_STN_DATA/cifar10` if that is set, else the user's cache.
        progress: Whether to draw a progress bar on stderr. Default True.
        url: Address of the archive, for a mirror. Default the official one.

    Returns:
        The folder, which `find` finds.

    Raises:
        DataError: no connection, a wrong checksum, or a folder that cannot be written to.
    """
    target = target_folder(folder, "cifar10")
    if all(_existing(target, name) is not None for name in SHA256):
        return target
    try:
        archive = Path(pooch.retrieve(url, f"sha256:{ARCHIVE_SHA256}", path=target, progressbar=progress))
        with tarfile.open(archive) as files:
            for name in SHA256:
                content = files.extractfile(f"{FOLDERS[0]}/{name}.bin")
                assert content is not None  # a folder; the checksum says otherwise
                with whole_file(target / f"{name}.bin") as part:
                    part.write_bytes(content.read())
        archive.unlink()
    except (OSError, ValueError) as error:  # connection and file system; checksum
        raise DataError(f"{url} could not be fetched into {target}: {error}; try again") from error
    return target


def _existing(folder: Path, name: str) -> Path | None:
    """The file `name` of the binary version, or of the Python version."""
    return next((path for path in (folder / f"{name}.bin", folder / name) if path.is_file()), None)


def _load_batch(folder: Path, name: str) -> Tensor:
    """The records of a file, uint8 of shape `(n, 1 + 3072)`."""
    path = _existing(folder, name)
    if path is None:  # deleted since `find`
        raise DataError(f"{folder / name}: vanished while loading; fetch the file again")
    try:
        content = read_whole(path, most=_MOST_BYTES)
        records = bytearray(content if path.suffix == ".bin" else _records_of_pickle(content))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; fetch the file again") from error
    except (ValueError, OverflowError, MemoryError) as error:  # the last of lengths that a damaged pickle promises
        problem = str(error) or "it promises more than it has"
        raise DataError(f"{path}: not the official file of CIFAR-10 ({problem}); fetch it again") from error
    if hashlib.sha256(records).hexdigest() != SHA256[name]:
        raise DataError(f"{path}: not the official {name} of CIFAR-10, or damaged; fetch it again")
    return torch.frombuffer(records, dtype=torch.uint8).view(-1, 1 + _PIXELS)


def _records_of_pickle(content: bytes) -> bytes:
    """The records of a file of the Python version, as the binary version has them.

    The pickle's instructions are listed, not executed: its longest string is the pixels, and the small integers that
    follow the string "labels" are the labels.

    Raises:
        ValueError: the content is no pickle, or has no such parts.
    """
    pixels, labels, in_labels = "", bytearray(), False
    for opcode, argument, _ in pickletools.genops(content):
        if isinstance(argument, str):
            in_labels = argument == "labels"
            pixels = max(pixels, argument, key=len)
        elif in_labels and opcode.name == "BININT1" and argument is not None:
            labels.append(argument)
    if not labels or len(pixels) != len(labels) * _PIXELS:
        raise ValueError(f"{len(labels)} labels and {len(pixels)} bytes of pixels")
    pixel_rows = np.frombuffer(pixels.encode("latin-1"), np.uint8).reshape(len(labels), _PIXELS)
    return np.hstack([np.frombuffer(labels, np.uint8)[:, None], pixel_rows]).tobytes()
