"""Fashion-MNIST: where it is found, what is refused, and fetching from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from tune_stn.data import fashion_mnist
from tune_stn.data.source import DataError

DEBIAN_FOLDER = fashion_mnist.DEBIAN_FOLDER
OFFICIAL = dict(fashion_mnist.CONTENT_SHA256)
needs_debian = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(),
    reason="needs the real data: apt-get install dataset-fashion-mnist",
)


def idx(*shape: int, fill: int) -> bytes:
    size = torch.Size(shape).numel()
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes([fill]) * size


def write_files(folder: Path, *, n: int = 3, side: int = 28, labels: int = 3, label: int = 9) -> Path:
    """Small files under the official names; every pixel is 7, every label `label`."""
    folder.mkdir(parents=True)
    for name in fashion_mnist.SHA256:
        content = idx(n, side, side, fill=7) if "images" in name else idx(labels, fill=label)
        (folder / name).write_bytes(gzip.compress(content))
    return folder


def unzip(folder: Path) -> Path:
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return folder


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take small files for the official ones; keep Debian's folder, the user's cache and settings out of the tests."""
    for name in OFFICIAL:
        content = idx(3, 28, 28, fill=7) if "images" in name else idx(3, fill=9)
        monkeypatch.setitem(fashion_mnist.CONTENT_SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("TUNE_STN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_explicit_folder_is_loaded(tmp_path: Path) -> None:
    train, test = fashion_mnist.load(write_files(tmp_path / "mine"))
    for split in (train, test):
        assert split.inputs.dtype == torch.uint8
        assert split.inputs.shape == (3, 28, 28)
        assert split.targets.dtype == torch.int64
        assert split.targets.tolist() == [9, 9, 9]
        assert split.inputs.unique().tolist() == [7]  # type: ignore[no-untyped-call]


def test_unzipped_files_and_a_path_from_the_command_line_do(tmp_path: Path) -> None:
    folder = unzip(write_files(tmp_path / "mine"))
    assert len(fashion_mnist.load(str(folder))[0]) == 3


def test_places_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_files(tmp_path / "cache" / "tune_stn" / "fashion-mnist")
    assert fashion_mnist.find() == cache
    debian = write_files(tmp_path / "debian")
    assert fashion_mnist.find() == debian
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path / "env"))
    assert fashion_mnist.find() == debian  # the variable may point at other data sets only
    from_env = write_files(tmp_path / "env" / "fashion-mnist")
    assert fashion_mnist.find() == from_env
    explicit = write_files(tmp_path / "mine")
    assert fashion_mnist.find(explicit) == explicit


def test_not_found_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path / "env"))
    with pytest.raises(DataError) as caught:
        fashion_mnist.load()
    for part in ("env/fashion-mnist", "debian", "cache", "apt-get", "tune-stn data", "data_dir="):
        assert part in str(caught.value)


def test_explicit_folder_never_falls_back(tmp_path: Path) -> None:
    write_files(tmp_path / "debian")
    incomplete = write_files(tmp_path / "mine")
    (incomplete / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="mine;") as caught:
        fashion_mnist.load(incomplete)
    assert "debian;" not in str(caught.value)


@pytest.mark.parametrize("files", [{"side": 32}, {"labels": 4}, {"label": 8}])
@pytest.mark.parametrize("zipped", [True, False])
def test_other_data_are_refused(tmp_path: Path, files: dict[str, int], zipped: bool) -> None:
    folder = write_files(tmp_path / "mine", **files)
    with pytest.raises(DataError, match=r"train-(images|labels).*: not the official file, or damaged"):
        fashion_mnist.load(folder if zipped else unzip(folder))


def test_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine")
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="t10k-images"):
        fashion_mnist.load(folder)


@needs_debian
def test_real_data_and_official_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "CONTENT_SHA256", OFFICIAL)
    train, test = fashion_mnist.load(DEBIAN_FOLDER)
    assert torch.bincount(train.targets).tolist() == [6000] * 10
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    assert train.inputs.double().mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    # Debian's files are the official ones less the gzip header's time stamp and file name: put them back.
    stamps = {"train": 1504176606, "t10k": 1504176627}
    for name, sha256 in fashion_mnist.SHA256.items():
        stripped = (DEBIAN_FOLDER / name).read_bytes()
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", stamps[name.split("-")[0]]) + stripped[8:10]
        official = header + name.removesuffix(".gz").encode() + b"\0" + stripped[10:]
        assert hashlib.sha256(official).hexdigest() == sha256


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server with small files, whose checksums are taken for the official ones."""
    folder = write_files(tmp_path / "served")
    for name in list(fashion_mnist.SHA256):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(fashion_mnist.SHA256, name, digest)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as httpd:
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def test_fetched_files_are_found_and_loaded(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fashion_mnist.fetch(base_url=server)
    assert folder == tmp_path / "cache" / "tune_stn" / "fashion-mnist"
    assert "100%" in capsys.readouterr().err
    assert fashion_mnist.find() == folder
    assert len(fashion_mnist.load()[0]) == 3


def test_fetch_honours_folder_and_environment(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path / "env"))
    assert fashion_mnist.fetch(progress=False, base_url=server) == tmp_path / "env" / "fashion-mnist"
    mine = fashion_mnist.fetch(tmp_path / "mine", progress=False, base_url=server.rstrip("/"))
    assert mine == tmp_path / "mine"
    assert sorted(path.name for path in mine.iterdir()) == sorted(fashion_mnist.SHA256)
    assert "%" not in capsys.readouterr().err


def test_files_already_there_are_not_fetched_again(server: str, tmp_path: Path) -> None:
    folder = fashion_mnist.fetch(progress=False, base_url=server)
    for path in (tmp_path / "served").iterdir():
        path.unlink()
    assert fashion_mnist.fetch(progress=False, base_url=server) == folder


def test_wrong_checksum_leaves_nothing_behind(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fashion_mnist.SHA256, "train-images-idx3-ubyte.gz", "0" * 64)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz could not be fetched .* hash") as caught:
        fashion_mnist.fetch(tmp_path / "mine", progress=False, base_url=server)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "mine").iterdir()) == []


def test_missing_file_keeps_the_good_ones_for_the_next_try(server: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="404"):
        fashion_mnist.fetch(tmp_path / "mine", progress=False, base_url=server)
    assert len(list((tmp_path / "mine").iterdir())) == 3
    with pytest.raises(DataError, match="not found"):
        fashion_mnist.find(tmp_path / "mine")


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "nonsense://host"])
def test_no_server_is_a_data_error(tmp_path: Path, base_url: str) -> None:
    with pytest.raises(DataError, match="could not be fetched"):
        fashion_mnist.fetch(tmp_path / "mine", progress=False, base_url=base_url)


def test_folder_that_is_a_file_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("in the way")
    with pytest.raises(DataError, match="could not be fetched into"):
        fashion_mnist.fetch(tmp_path / "mine", progress=False)
