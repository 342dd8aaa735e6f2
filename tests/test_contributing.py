"""The table of likely changes in CONTRIBUTING.md: each row names files that there are, and in them what it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if re.match(r"\| (?!you want|-)", line)]
PATH = re.compile(r"[\w./<>-]+\.(?:py|md|yml|js|html)")
NAME = re.compile(r"_?[A-Z][A-Z_]{3,}|[a-z_]*[A-Z]\w+(?:\.\w+)?|[a-z]+(?:_[a-z]+)+|figures|report|plan|nav")


def found(path: str) -> list[Path]:
    """The files that a path of the table can mean, from the top or from the package; of `<name>.py`, the folder's."""
    folders = (ROOT, ROOT / "tune_stn", ROOT / "tune_stn" / "tuning")
    if "<" in path:
        return [one for folder in folders for one in (folder / path).parent.glob(f"*{Path(path).suffix}")]
    return [folder / path for folder in folders if (folder / path).exists()]


def test_the_table_is_found() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_row_is_true(row: str) -> None:
    ticked = re.findall(r"`([^`]+)`", row.split("|")[2])
    paths = [one for one in ticked if PATH.fullmatch(one)]
    assert paths
    assert [path for path in paths if not found(path)] == []
    text = "\n".join(file.read_text() for path in paths for file in found(path))
    names = [part for one in ticked if NAME.fullmatch(one) for part in one.split(".")]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
