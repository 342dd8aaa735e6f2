"""CIFAR-10: both official versions from small files, what is refused, and fetching from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from tune_stn.data import cifar10
from tune_stn.data.source import DataError

OFFICIAL = dict(cifar10.SHA256)
REAL = os.environ.get("TUNE_STN_CIFAR10")
needs_data = pytest.mark.skipif(REAL is None, reason="needs the real data: set TUNE_STN_CIFAR10 to its folder")


def records(name: str, n: int = 12) -> bytes:
    """`n` records of which no two are the same, other ones in each file."""
    seed = list(OFFICIAL).index(name)
    pixels = torch.randint(256, (n, 3072), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return torch.cat([(torch.arange(n) % 10).byte()[:, None], pixels], 1).numpy().tobytes()


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python_2_pickle(content: bytes, *, first: bytes = b"") -> bytes:
    """As Python 2 wrote them: strings of bytes, labels as a list, an array whose state holds the pixels."""
    rows = [content[i : i + 3073] for i in range(0, len(content), 3073)]
    labels, pixels = b"".join(b"K" + row[:1] for row in rows), b"".join(row[1:] for row in rows)
    shape = b"(K\x01" + b"M" + struct.pack("<H", len(rows)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R" + shape + dtype
    array += b"\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    names = short(b"filenames") + b"](" + short(b"a.png") + short(b"b.png") + b"e"
    return b"\x80\x02}(" + first + short(b"labels") + b"](" + labels + b"e" + short(b"data") + array + names + b"u."


def write_bin(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in cifar10.SHA256:
        (folder / f"{name}.bin").write_bytes(records(name))
    return folder


def write_py(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in cifar10.SHA256:
        (folder / name).write_bytes(python_2_pickle(records(name), first=short(b"batch_label") + short(b"1 of 5")))
    return folder


both = pytest.mark.parametrize("write", [write_bin, write_py])


@pytest.fixture(autouse=True)
def small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take small files for the official ones, and keep the user's cache and settings out of the tests."""
    small = {name: hashlib.sha256(records(name)).hexdigest() for name in OFFICIAL}
    monkeypatch.setattr(cifar10, "SHA256", small)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("TUNE_STN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@both
def test_each_version_is_loaded(write: Callable[[Path], Path], tmp_path: Path) -> None:
    train, test = cifar10.load(write(tmp_path / "mine"))
    assert train.inputs.dtype == test.inputs.dtype == torch.uint8
    assert train.inputs.shape == (60, 3, 32, 32)
    assert test.inputs.shape == (12, 3, 32, 32)
    assert train.targets.dtype == torch.int64
    assert train.targets.tolist() == [i % 10 for i in range(12)] * 5
    third = records("data_batch_3")
    assert train.inputs[24].flatten().tolist() == list(third[1:3073])
    assert int(test.inputs[1, 2, 31, 30]) == records("test_batch")[2 * 3073 - 2]  # blue, last row, last pixel but one


def test_both_versions_are_the_same(tmp_path: Path) -> None:
    first, second = cifar10.load(write_bin(tmp_path / "bin")), cifar10.load(write_py(tmp_path / "py"))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


def test_the_fake_pickle_is_one(tmp_path: Path) -> None:
    """Python itself reads ours; the project never does that."""
    content = records("test_batch")
    read = pickle.loads(python_2_pickle(content), encoding="latin-1")  # noqa: S301
    assert read["data"].shape == (12, 3072)
    assert read["data"][1].tobytes() == content[3074:6146]
    assert read["labels"] == [i % 10 for i in range(12)]


@pytest.mark.parametrize("inner", ["", *cifar10.FOLDERS])
def test_places_are_tried_in_order(inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files lie in a place itself, or in the folder of an official archive in it."""
    write = write_py if inner == "cifar-10-batches-py" else write_bin
    cache = write(tmp_path / "cache" / "tune_stn" / "cifar10" / inner)
    assert cifar10.find() == cache
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path / "env"))
    assert cifar10.find() == cache  # the variable may point at other data sets only
    from_env = write(tmp_path / "env" / "cifar10" / inner)
    assert cifar10.find() == from_env
    explicit = write(tmp_path / "mine" / inner)
    assert cifar10.find(str(tmp_path / "mine")) == explicit


def test_not_found_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path / "env"))
    with pytest.raises(DataError) as caught:
        cifar10.load()
    for part in ("env/cifar10", "cache", "tune-stn data cifar10", "kriz/cifar.html", "data_dir="):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_explicit_folder_never_falls_back(tmp_path: Path) -> None:
    write_bin(tmp_path / "cache" / "tune_stn" / "cifar10")
    incomplete = write_bin(tmp_path / "mine")
    (incomplete / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"CIFAR-10 not found in .*mine; get it by"):
        cifar10.load(incomplete)


@both
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:3000] + b"\0" + b[3001:], lambda b: b"", bytes.upper]
)
def test_damaged_file_is_named(write: Callable[[Path], Path], damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    path = next(folder.glob("data_batch_4*"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"data_batch_4.*not the .*fetch it again") as caught:
        cifar10.load(folder)
    assert "\n" not in str(caught.value)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path) -> None:
    trap = b"cos\nmkdir\n(X" + struct.pack("<I", len(str(tmp_path / "trap"))) + str(tmp_path / "trap").encode() + b"tR0"
    content = python_2_pickle(records("data_batch_1"))
    trapped = content[:2] + trap + content[2:]
    pickle.loads(trapped, encoding="latin-1")  # noqa: S301
    (tmp_path / "trap").rmdir()  # the trap works
    folder = write_py(tmp_path / "mine")
    (folder / "data_batch_1").write_bytes(trapped)
    assert len(cifar10.load(folder)[0]) == 60
    assert not (tmp_path / "trap").exists()


@needs_data
def test_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SHA256", OFFICIAL)
    train, test = cifar10.load(REAL)
    assert torch.bincount(train.targets).tolist() == [5000] * 10
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    assert train.targets[:5].tolist() == [6, 9, 9, 4, 1]
    assert train.inputs[:, 0].double().mean() / 255 == pytest.approx(0.4914, abs=1e-4)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a small archive, whose checksum is taken for the official one."""
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "small.tar.gz", "w:gz") as archive:
        for name in (*cifar10.SHA256, "batches.meta"):
            content = records(name) if name in cifar10.SHA256 else b"airplane"
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = hashlib.sha256((served / "small.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", digest)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(served))) as httpd:
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/small.tar.gz"
        httpd.shutdown()
        thread.join()


def test_fetched_files_are_found_and_loaded(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cifar10.fetch(url=server)
    assert folder == tmp_path / "cache" / "tune_stn" / "cifar10"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.bin" for name in cifar10.SHA256)
    assert "100%" in capsys.readouterr().err
    assert cifar10.find() == folder
    assert len(cifar10.load()[0]) == 60
    (tmp_path / "served" / "small.tar.gz").unlink()
    assert cifar10.fetch(url=server) == folder  # what is there is not fetched again


def test_fetch_honours_folder_and_environment(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path / "env"))
    assert cifar10.fetch(progress=False, url=server) == tmp_path / "env" / "cifar10"
    assert cifar10.fetch(tmp_path / "mine", progress=False, url=server) == tmp_path / "mine"
    assert "%" not in capsys.readouterr().err


def test_wrong_checksum_leaves_nothing_behind(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"small.tar.gz could not be fetched .* hash"):
        cifar10.fetch(tmp_path / "mine", progress=False, url=server)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.tar.gz", "nonsense://host/a.tar.gz"])
def test_no_server_is_a_data_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="could not be fetched"):
        cifar10.fetch(tmp_path / "mine", progress=False, url=url)


def test_folder_that_is_a_file_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("in the way")
    with pytest.raises(DataError, match="could not be fetched into"):
        cifar10.fetch(tmp_path / "mine", progress=False)
