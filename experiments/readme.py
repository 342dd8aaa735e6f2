"""Puts the tables into the pages, between the marks `<!-- begin NAME -->` and `<!-- end NAME -->`.

Each script makes its own from its committed results: `TABLES` of the script, by the names in the marks.

    python experiments/readme.py           # rewrites the marked parts of the pages, and results/figures/*.png
    python experiments/readme.py --check   # exit code 1 if a page is not what the results say
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from comparison import best_of
from pages import RESULTS

from tune_stn.study.plots import plot_schedules
from tune_stn.study.results import load_results

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "explanation" / "when-it-helps.md",
    ROOT / "docs" / "explanation" / "cost.md",
    RESULTS / "README.md",
)
MARKED = re.compile(r"<!-- begin (?P<name>[^>]+?) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    made, shown = tables(), set()
    for path in PAGES:
        before = path.read_text()
        shown.update(mark["name"] for mark in MARKED.finditer(before))
        after = MARKED.sub(lambda mark: filled(mark["name"], made), before)
        if not arguments.check:
            path.write_text(after)
        elif after != before:
            sys.exit(f"{path.relative_to(ROOT)} is not what the results say: run python experiments/readme.py")
    if hidden := sorted(set(made) - shown):
        sys.exit(f"no page shows the table {hidden[0]}: it needs <!-- begin {hidden[0]} --> and <!-- end ... -->")
    if arguments.check:
        return
    figures = RESULTS / "figures"
    figures.mkdir(exist_ok=True)
    best = best_of(load_results(RESULTS / "regularisation_gain" / "fashion-mnist-cnn-cpu"), "auto")
    plot_schedules(best).savefig(figures / "schedule.png", dpi=90)


def tables() -> dict[str, Callable[[], str]]:
    """The tables of all scripts, by name."""
    found: dict[str, Callable[[], str]] = {}
    for script in sorted(Path(__file__).parent.glob("*.py")):
        if re.search(r"^TABLES\b", script.read_text(), re.MULTILINE):
            found |= importlib.import_module(script.stem).TABLES
    return found


def filled(name: str, made: dict[str, Callable[[], str]]) -> str:
    """The marked part of a page with the table of its name."""
    if name not in made:
        sys.exit(f"a page has the mark <!-- begin {name} -->, but no script of experiments/ has it in its TABLES")
    return f"<!-- begin {name} -->\n{made[name]()}\n<!-- end {name} -->"


if __name__ == "__main__":
    main()
