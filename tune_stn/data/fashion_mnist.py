"""Fashion-MNIST: 28×28 grey images of clothes in ten classes (Xiao et al. 2017, arXiv 1708.07747)."""

from __future__ import annotations

from pathlib import Path

import pooch
from torch import Tensor

from tune_stn.data.idx import read_idx
from tune_stn.data.source import DataError, cache_folder, env_folder, target_folder
from tune_stn.data.splits import Split

CLASSES = 10
BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
# Unzipped: Debian's files are zipped in another way, and unzipped ones have no checksum of their own.
CONTENT_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_MOST_BYTES = 2**26  # the largest file has 47 million
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load(folder: str | Path | None = None) -> tuple[Split, Split]:
    """The official training and test examples.

    Args:
        folder: Folder with the four idx files, gzipped or not; default the first place of `find` that has them.

    Returns:
        `(train, test)`; inputs are uint8 of shape `(n, 28, 28)`, targets int64 of shape `(n,)` in `0 … 9`.

    Raises:
        DataError: the files are not found, or their content is not the official one.
    """
    found = find(folder)
    return _load_pair(found, "train"), _load_pair(found, "t10k")


def find(folder: str | Path | None = None) -> Path:
    """The folder that holds the four files.

    A folder that is given is the only one looked at. Otherwise, in this order:
    `$TUNE_STN_DATA/fashion-mnist`, the folder of Debian's package, the user's cache.

    Raises:
        DataError: none has them all; says where it looked and how to get them.
    """
    if folder is not None:
        candidates = [Path(folder).expanduser()]
    else:
        candidates = [DEBIAN_FOLDER, cache_folder("fashion-mnist")]
        if (from_env := env_folder("fashion-mnist")) is not None:
            candidates.insert(0, from_env)
    for candidate in candidates:
        if all(_existing(candidate, name) is not None for name in SHA256):
            return candidate
    raise DataError(
        f"Fashion-MNIST not found in {', '.join(map(str, candidates))}; get it by "
        "`apt-get install dataset-fashion-mnist` or `tune-stn data fashion-mnist`, "
        "or name a folder that has its four idx files by `data_dir=FOLDER`"
    )


def fetch(folder: str | Path | None = None, *, progress: bool = True, base_url: str = BASE_URL) -> Path:
    """Download the four official files; those already there are not fetched again.

    Each is kept only if its SHA-256 is right, so nothing is left of a download that fails half-way.

    Args:
        folder: Folder to write to; default `$TUNE_STN_DATA/fashion-mnist` if that is set, else the user's cache.
        progress: Whether to draw a progress bar on stderr for each file. Default True.
        base_url: Address of the folder that holds the files, for a mirror. Default the official one.

    Returns:
        The folder, which `find` finds.

    Raises:
        DataError: no connection, a wrong checksum, or a folder that cannot be written to.
    """
    target = target_folder(folder, "fashion-mnist")
    for name, sha256 in SHA256.items():
        url = f"{base_url.rstrip('/')}/{name}"
        try:
            pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=target, progressbar=progress)
        except (OSError, ValueError) as error:  # connection and file system; checksum
            raise DataError(
                f"{url} could not be fetched into {target}: {error}; try again, or "
                "`apt-get install dataset-fashion-mnist`"
            ) from error
    return target


def _existing(folder: Path, name: str) -> Path | None:
    """The file `name`, or the same without `.gz`."""
    return next((path for path in (folder / name, folder / name.removesuffix(".gz")) if path.is_file()), None)


def _load_pair(folder: Path, prefix: str) -> Split:
    images, labels = (_load_array(folder, f"{prefix}-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    return Split(images, labels.long())


def _load_array(folder: Path, name: str) -> Tensor:
    path = _existing(folder, name)
    if path is None:  # deleted since `find`
        raise DataError(f"{folder / name}: vanished while loading; fetch the file again")
    return read_idx(path, sha256=CONTENT_SHA256[name], most=_MOST_BYTES)
