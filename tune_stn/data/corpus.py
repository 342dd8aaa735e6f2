"""Words of text files, and their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tune_stn.checked import read_whole
from tune_stn.data.source import DataError

EOS = "<eos>"  # ends every line
MOST_BYTES = 2**30  # the words of such a text take tens of gigabytes
UNK = "<unk>"  # in place of a word that the vocabulary has not


def read_words(path: Path) -> list[str]:
    """The words of a UTF-8 text file, by white space, with `<eos>` at the end of every line.

    Raises:
        DataError: there is no such file, it is no text, it has no words, or it is larger than a gigabyte.
    """
    try:
        text = read_whole(path, most=MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise DataError(f"{path} is too large: {error}") from error
    words = words_of(text)
    if not words:
        raise DataError(f"{path} has no words")
    return words


def words_of(text: str) -> list[str]:
    """Words by white space, with `<eos>` at the end of every line that has any."""
    return [word for line in text.splitlines() if line.strip() for word in (*line.split(), EOS)]


@dataclass(frozen=True)
class Vocabulary:
    """Words, numbered in their order. It has `<unk>`, the number of every word that it has not.

    Raises:
        ValueError: a word twice, or no `<unk>`.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.words)) != len(self.words):
            raise ValueError(f"the word {Counter(self.words).most_common(1)[0][0]!r} is in the vocabulary twice")
        if UNK not in self.words:
            raise ValueError(f"the vocabulary has no {UNK}, for words that it has not")

    @classmethod
    def of(cls, words: Iterable[str], *, size: int | None = None, least: int = 1) -> Self:
        """The most frequent words, the more frequent first; of equals, the one that comes first in the text.

        Args:
            words: Words of the training text; those of other splits would tell the network about them.
            size: Largest number of words, `<eos>` and `<unk>` among them. Default None: no limit.
            least: Smallest number of occurrences that a word must have. Default 1.

        Raises:
            ValueError: `size` below 2.
        """
        if size is not None and size < 2:
            raise ValueError(f"a vocabulary of size {size}: accepted is 2 or more, for {EOS} and {UNK} are in it")
        counts = Counter(words)
        ranked = [word for word, count in counts.most_common() if count >= least and word not in (EOS, UNK)]
        return cls((EOS, UNK, *ranked[: None if size is None else size - 2]))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, words: Sequence[str]) -> Tensor:
        """Numbers of words, int64 of shape `(len(words),)`."""
        unknown = self.numbers[UNK]
        return torch.tensor([self.numbers.get(word, unknown) for word in words])
