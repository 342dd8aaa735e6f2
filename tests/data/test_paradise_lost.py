"""The text inside the package."""

from __future__ import annotations

from tune_stn.data import paradise_lost
from tune_stn.data.corpus import EOS


def test_ten_books_in_three_splits() -> None:
    words = paradise_lost.load()
    assert {split: len(part) for split, part in words.items()} == {"train": 77_633, "valid": 10_923, "test": 15_285}
    assert sum(len(part) - part.count(EOS) for part in words.values()) == 93_290
    assert words["train"][:9] == ["of", "mans", "first", "disobedience", ",", "and", "the", "fruit", EOS]
    assert words["valid"][:4] == ["meanwhile", "the", "hainous", "and"]
    assert words["test"][-3:] == ["way", ".", EOS]


def test_small_letters_and_marks_without_headings() -> None:
    for part in paradise_lost.load().values():
        assert "book" not in part[:3]
        assert part[-1] == EOS
        text = " ".join(part)
        assert text == text.lower()
        assert "the end of the" not in text
