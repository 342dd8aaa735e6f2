"""Paradise Lost (John Milton, 1667), which lies inside the package: a text that everybody has and may have.

The ten books of the first edition: 103,841 tokens, of which 10,551 end a verse. The spelling is the author's. In the
public domain; the transcription is Project Gutenberg's, without its notes.
"""

from __future__ import annotations

import re
from importlib import resources

from tune_stn.data.corpus import words_of

_BOOK = re.compile(r"^\s*(THE END.*|BOOK [IVX]+\.?|PARADISE LOST)\s*$")
_TOKEN = re.compile(r"[a-z]+(?:['-][a-z]+)*|'[a-z]+|[^\sa-z]")
BOOKS = {"train": slice(0, 8), "valid": slice(8, 9), "test": slice(9, 10)}


def load() -> dict[str, list[str]]:
    """Words and marks of each split, in small letters, with `<eos>` at the end of every verse."""
    text = resources.files("tune_stn.data").joinpath("texts/paradise_lost.txt").read_text(encoding="utf-8")
    books: list[list[str]] = []
    for line in text.splitlines():
        if _BOOK.match(line):
            if line.startswith("BOOK"):
                books.append([])
        elif books:
            books[-1] += words_of(" ".join(_TOKEN.findall(line.lower())))
    return {split: [word for book in books[which] for word in book] for split, which in BOOKS.items()}
