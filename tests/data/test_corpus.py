"""Words and their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_stn.data.corpus import EOS, UNK, Vocabulary, read_words
from tune_stn.data.source import DataError


def test_every_line_with_words_ends(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(" the cat \n\n  \nsat\tdown <unk>\n")
    assert read_words(path) == ["the", "cat", EOS, "sat", "down", UNK, EOS]


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.txt: No such file"):
        read_words(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt is no UTF-8 text: .* at byte 3"):
        read_words(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.txt has no words"):
        read_words(tmp_path / "empty.txt")


def test_words_come_by_frequency_then_by_place() -> None:
    words = ["b", "a", EOS, "c", "a", EOS, "c", "d", EOS]
    assert Vocabulary.of(words).words == (EOS, UNK, "a", "c", "b", "d")
    assert Vocabulary.of(words, size=4).words == (EOS, UNK, "a", "c")
    assert Vocabulary.of(words, least=2).words == (EOS, UNK, "a", "c")
    assert Vocabulary.of(words, size=2).words == (EOS, UNK)


def test_unknown_words_share_a_number() -> None:
    vocabulary = Vocabulary.of(["a", "b", EOS])
    assert len(vocabulary) == 4
    assert vocabulary.encode(["b", "z", EOS, UNK, "a", "y"]).tolist() == [3, 1, 0, 1, 2, 1]


@pytest.mark.parametrize("size", [1, 0, -3])
def test_there_is_room_for_the_two_special_words(size: int) -> None:
    with pytest.raises(ValueError, match=f"a vocabulary of size {size}: accepted is 2 or more"):
        Vocabulary.of(["a"], size=size)


def test_a_vocabulary_has_each_word_once_and_unk() -> None:
    with pytest.raises(ValueError, match="'a' is in the vocabulary twice"):
        Vocabulary((UNK, "a", "a"))
    with pytest.raises(ValueError, match="has no <unk>"):
        Vocabulary(("a",))
