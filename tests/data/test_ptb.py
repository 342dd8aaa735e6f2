"""Penn Treebank where it lies."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tune_stn.data import ptb
from tune_stn.data.corpus import EOS, Vocabulary
from tune_stn.data.source import DataError

TEXTS = {"train": "a b <unk>\nc\n", "valid": "b\n", "test": "a a\n"}


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tiny texts are taken for the official ones."""
    sums = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in TEXTS.items()}
    monkeypatch.setattr(ptb, "SHA256", sums)


def write(folder: Path, name: str = "{}.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in TEXTS.items():
        (folder / name.format(split)).write_text(text)
    return folder


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize("name", ["{}.txt", "ptb.{}.txt"])
def test_both_names_of_the_files_are_read(tmp_path: Path, name: str) -> None:
    words = ptb.load(write(tmp_path, name))
    assert words == {"train": ["a", "b", "<unk>", EOS, "c", EOS], "valid": ["b", EOS], "test": ["a", "a", EOS]}


@pytest.mark.usefixtures("official")
def test_the_environment_names_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path))
    folder = write(tmp_path / "ptb")
    assert ptb.find() == folder
    assert len(ptb.load()["train"]) == 6


def test_where_it_is_not_it_says_where_it_looked_and_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(DataError, match="Penn Treebank not found in") as error:
        ptb.find(tmp_path)
    for part in (str(tmp_path), "LDC99T42", "data_dir=FOLDER"):
        assert part in str(error.value)


def test_another_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt is not the official Penn Treebank text"):
        ptb.load(write(tmp_path))


@pytest.mark.skipif("TUNE_STN_PTB" not in os.environ, reason="needs the real data: set TUNE_STN_PTB to its folder")
def test_real_data() -> None:
    words = ptb.load(os.environ["TUNE_STN_PTB"])
    assert {split: len(part) for split, part in words.items()} == {"train": 929_589, "valid": 73_760, "test": 82_430}
    assert len(Vocabulary.of(words["train"])) == 10_000
    assert sum(word == EOS for word in words["train"]) == 42_068
