"""The tables and the picture of the update rules, from what experiments/rules.py wrote.

It reads experiments/results/rules/SETTING.parquet and writes README.md and curves.png beside them; the tables go to the
terminal too. An arm that was not run is named as such.

    python experiments/rules_tables.py
    python experiments/rules_tables.py --smoke-test   # trains the smoke runs of rules.py first, in a new folder
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd
from pages import Section, markdown
from rules import RANDOM, RESULTS, SETTINGS
from rules_curves import draw
from rules_remarks import LIMITS, TRIED
from rules_sections import SECTIONS, Tables, every, family
from rules_verdicts import (
    NOT_RUN,
    REPLAYED,
    P,
    best_with_start,
    by_seed,
    difference,
    judge,
    paired,
    percent,
    together,
)

from tune_stn.study.statistics import PairedDifference

SMOKE_ARMS = "plain,auto,auto/frozen,progress-ratio,random,lr,placebo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--smoke-test", action="store_true")
    arguments = parser.parse_args()
    results = arguments.results or (Path(tempfile.mkdtemp()) if arguments.smoke_test else RESULTS)
    if arguments.smoke_test:
        script = Path(__file__).with_name("rules.py")
        options = ["--smoke-test", "--results", str(results), "--arms", SMOKE_ARMS]
        subprocess.run([sys.executable, str(script), *options], check=True)
    tables = load(results)
    curves = draw(tables)
    if curves is not None:
        curves.savefig(results / "curves.png", dpi=110)
    parts = [make(tables) for make in SECTIONS]
    (results / "README.md").write_text(page(parts, tables, curves is not None))
    print("\n\n".join(text(part) for part in parts))


def load(results: Path) -> dict[str, pd.DataFrame]:
    """The runs of each setting, those of `rules.SETTINGS` first and in its order.

    Args:
        results: The folder of the Parquet files.

    Raises:
        SystemExit: There is no file, or a file has two runs of one arm and seed.
    """
    found = {file.stem: file for file in sorted(results.glob("*.parquet"))}
    if not found:
        raise SystemExit(f"{results} holds no *.parquet: run experiments/rules.py first")
    tables = {}
    for name in [*(name for name in SETTINGS if name in found), *(name for name in found if name not in SETTINGS)]:
        table = pd.read_parquet(found[name]).sort_values("seed")
        twice = table[table.duplicated(["arm", "seed"])]
        if len(twice):
            raise SystemExit(f"{found[name]}: {twice['arm'].iloc[0]}, seed {twice['seed'].iloc[0]} is there twice")
        tables[name] = table
    return tables


# The short table


def summary(tables: Tables) -> str:
    """One row for each setting: `auto` beside the plain network and a search; then what the rows say, counted."""
    header = ["task", "seeds", "plain", "`auto`", "its cost", "`auto` minus plain [95 %]"]
    header += [f"`auto` minus best of {RANDOM} runs", "replay keeps", "last values keep"]
    rows, gains, searches, progress, last = [], [], [], [], []
    for name in every(tables):
        verdict = judge(tables[name]) if name in tables else None
        if verdict is None:
            rows.append([name, "0", *[NOT_RUN] * (len(header) - 2)])
            continue
        plain, auto = together(by_seed(tables[name], "plain"), by_seed(tables[name], "auto"))
        gain, search = difference(auto, plain), difference(auto, best_with_start(tables[name]))
        cells = [name, str(len(auto)), f"{plain.mean():.3f}", f"{auto.mean():.3f}", f"{verdict.cost:.2f}"]
        cells += [paired(gain), paired(search, len(auto))]
        rows.append([*cells, *(percent(verdict.shares[control]) for control in ("replayed", "last"))])
        gains.append(gain)
        searches.append(search)
        progress.append(verdict.progress)
        last.append(verdict.shares["last"])
    kept = [share for share in last if share is not None and not math.isnan(share)]
    lower, sure = (sum(d is not None and getattr(d, end) < 0 for d in gains) for end in ("mean", "high"))
    count = len(gains)
    notes = [
        f"The loss of `auto` is below that of plain training on {lower} of {count} tasks; the 95 % interval of the "
        f"difference is below 0 on {sure} of them.",
        f"`auto` differs from the search (p < {P}) on {told(searches)} of {count} tasks. It differs from "
        f"`progress-ratio`, the control that moves all hyperparameters by the same step, on {told(progress)}: most of "
        "the gain is one number, how much regularisation there is at each time.",
    ]
    if kept:
        much, worse = sum(share >= REPLAYED for share in kept), sum(share < 0 for share in kept)
        notes.append(
            f"Where `auto` gains, its last values alone, held from the start, keep {percent(REPLAYED)} of the gain or "
            f"more on {much} of {len(kept)} tasks; on {worse} they are worse than plain training: there the schedule "
            "is the gain."
        )
    return "\n".join([markdown(header, rows), "", *(f"- {note}" for note in notes)])


def told(differences: Iterable[PairedDifference | None]) -> int:
    """How many of the paired differences have a p-value below the bound."""
    return sum(found is not None and found.p_value < P for found in differences)


# The page


def page(parts: Iterable[Section], tables: Tables, curves: bool) -> str:
    """The page in Markdown.

    Args:
        parts: The sections with tables.
        tables: The runs of each setting.
        curves: Whether there is a picture.
    """
    lines = ["# Update rules and their controls", "", "`python experiments/rules_tables.py` writes this page from the"]
    lines[-1] += " Parquet files beside it: change that script, not the page. The runs are those of"
    arms = sorted({family(arm) for table in tables.values() for arm in table["arm"]})
    seeds = max(table["seed"].max() for table in tables.values()) + 1
    command = f"python experiments/rules.py --data-dir FOLDER --seeds {seeds} --settings {','.join(tables)}"
    lines += ["", "```", f"{command} \\", f"  --arms {','.join(arms)}", "```", ""]
    lines += ["with fewer seeds or arms where a table says so. Every loss is at the epoch of least validation loss."]
    for part in parts:
        lines += part.lines()
        if part.title == "What the gain is made of" and curves:
            lines += ["", "![Mean validation loss against cost](curves.png)"]
    lines += ["", "## What the rule cannot do", "", *(f"- {line}" for line in LIMITS)]
    lines += ["", "## What was tried and did not help", "", *(f"- {line}" for line in TRIED)]
    return "\n".join(lines) + "\n"


def text(section: Section) -> str:
    """A section for the terminal: its table with aligned columns, and the notes."""
    lines = [section.title]
    rows = [row for row in section.rows if set(row[2:]) != {NOT_RUN}]
    if rows:
        cells = [section.header, *rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(section.header))]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    left = [row[0] for row in section.rows if row not in rows]
    return "\n".join([*lines, *([f"Not run: {', '.join(left)}."] if left else []), *section.notes])


def short_table() -> str:
    """`summary` of the committed runs."""
    return summary(load(RESULTS))


TABLES: Mapping[str, Callable[[], str]] = {"rules": short_table}


if __name__ == "__main__":
    main()
