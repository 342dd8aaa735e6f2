"""Puts the tables into the pages, between the marks `<!-- begin NAME -->` and `<!-- end NAME -->`.

`result_tables.py` and `rules_tables.py` make them from the committed result files.

    python experiments/readme.py           # rewrites the marked parts of the pages, and results/figures/*.png
    python experiments/readme.py --check   # exit code 1 if a page is not what the results say
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from result_tables import RESULTS, TABLES

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
    shown = set()
    for path in PAGES:
        before = path.read_text()
        shown.update(mark["name"] for mark in MARKED.finditer(before))
        after = MARKED.sub(filled, before)
        if not arguments.check:
            path.write_text(after)
        elif after != before:
            sys.exit(f"{path.relative_to(ROOT)} is not what the results say: run python experiments/readme.py")
    if hidden := sorted(set(TABLES) - shown):
        sys.exit(f"no page shows the table {hidden[0]}: it needs <!-- begin {hidden[0]} --> and <!-- end ... -->")
    if arguments.check:
        return
    figures = RESULTS / "figures"
    figures.mkdir(exist_ok=True)
    plot_schedules(load_results(RESULTS / "regularisation_gain" / "stn")).savefig(figures / "schedule.png", dpi=90)


def filled(mark: re.Match[str]) -> str:
    """The marked part of a page with the table of its name."""
    name = mark["name"]
    if name not in TABLES:
        sys.exit(f"a page has the mark <!-- begin {name} -->, but there is no such table in result_tables.py")
    return f"<!-- begin {name} -->\n{TABLES[name]()}\n<!-- end {name} -->"


if __name__ == "__main__":
    main()
