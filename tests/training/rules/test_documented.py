"""docs/algorithms.md quotes the rules as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import tune_stn
from tune_stn.training import RULES

ROOT = Path(tune_stn.__file__).parent.parent
PAGE = ROOT / "docs" / "algorithms.md"


def quoted(page: str) -> Iterator[tuple[str, str]]:
    """Path of a rule's file, and a line of code that its section quotes in the last column of the table."""
    for section in re.split(r"(?m)^## ", page)[1:]:
        heading, _, body = section.partition("\n")
        if path := re.search(r"`(tune_stn/training/rules/\w+\.py)`", heading):
            for row in re.findall(r"(?m)^\|.*\|([^|]*)\|$", body):
                yield from ((path[1], line) for line in re.findall(r"`([^`]+)`", row))


QUOTED = list(quoted(PAGE.read_text()))


def test_a_quoted_line_is_one_of_the_file() -> None:
    there = {
        (path, code.split("  # ")[0].strip())
        for path in {path for path, _ in QUOTED}
        for code in (ROOT / path).read_text().splitlines()
    }
    assert [quote for quote in QUOTED if quote not in there] == []


def test_every_rule_has_its_section() -> None:
    of_rules = {rule.__module__.replace(".", "/") + ".py" for rule in RULES.values()}
    assert {path for path, _ in QUOTED} == of_rules
    assert len(QUOTED) > 25


def test_the_check_finds_a_line_that_is_quoted() -> None:
    table = "| 1 | what | `one`<br>`two` |\n| 2 | `no` code | |\n"
    page = f"# A\n\n## B: `tune_stn/training/rules/b.py`\n\n{table}\n## C\n\n| 3 | `three` |\n"
    assert list(quoted(page)) == [("tune_stn/training/rules/b.py", "one"), ("tune_stn/training/rules/b.py", "two")]
