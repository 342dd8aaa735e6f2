"""What the scripts share that write a page of Markdown from result files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

RESULTS = Path(__file__).parent / "results"


@dataclass
class Section:
    """A part of a page.

    Attributes:
        title: The heading.
        about: What the table shows, in a sentence or two.
        header: The names of the columns.
        rows: The cells, one list for each row.
        notes: What a reader must know beside the cells.
    """

    title: str
    about: str
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The section as lines of Markdown, with an empty one before it."""
        table = markdown(self.header, self.rows) if self.rows else "Not run."
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return ["", f"## {self.title}", "", self.about, "", table, *notes]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def paired(difference: Any) -> str:
    """Of a row with `mean`, `low`, `high` and `p_value`; empty for the one that the others are compared with."""
    if pd.isna(difference["mean"]):
        return ""
    ends = f"[{difference['low']:+.4f}, {difference['high']:+.4f}]"
    return f"{difference['mean']:+.4f} {ends}, p = {difference['p_value']:.2f}"
