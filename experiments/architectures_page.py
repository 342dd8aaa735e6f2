"""docs/architectures.md, from what experiments/architectures.py wrote to experiments/results/architectures/.

python experiments/architectures_page.py
python experiments/architectures_page.py --check   # exit code 1 if the page is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import pandas as pd
from pages import Section

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
RESULTS = Path(__file__).parent / "results" / "architectures"
ABOUT = """\
Which models of transformers convert, how they train, and what a step costs. Each is the library's own class, made by a
small configuration with random weights; nothing in its code is changed. `self_tuning` replaces or binds its parts:

- **A layer responds** if its weights can depend on the hyperparameters: a linear layer, convolution, embedding, LSTM,
  attention or norm of torch, or one that a package makes of these. The rules `stn` and `delta-stn` learn that response.
  `auto` and `progress-ratio`, the project's own, need none: they tune a model of which no layer responds just as well.
- **A rate is bound** if a dropout of the model reads the tuned one: a module, or a number that the code hands to a
  fused attention kernel. `dropout={"*": "rate"}` binds all of them.
- **A layer stays plain** where a response would be wrong or have no effect; it trains as ever. The second table says
  which do, and why."""
NUMBER = "{:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    made = page(*(pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=False) for name in ("table", "cost")))
    if not arguments.check:
        PAGE.write_text(made)
    elif PAGE.read_text() != made:
        sys.exit(f"docs/{PAGE.name} is not what the results say: run python experiments/{Path(__file__).name}")


def page(table: pd.DataFrame, cost: pd.DataFrame) -> str:
    """The page in Markdown.

    Args:
        table: A row for each architecture: what converts and trains.
        cost: A row for each architecture and size: what a step costs.
    """
    lines = ["# Architectures", "", ABOUT, ""]
    lines += ["`python experiments/architectures_page.py` writes this page: change that script, not the page."]
    for section in (converted(table), left_plain(table), costs(cost)):
        lines += section.lines()
    lines += ["", "## How it was made", ""]
    for made in (
        pd.concat([table, cost])[["command", "commit", "versions", "machine", "threads"]].drop_duplicates().values
    ):
        command, commit, versions, machine, threads = map(str, made)
        lines += ["```", command, "```", "", f"Commit {commit[:8]}; {versions}; {machine}; threads: {threads}."]
    return "\n".join(lines) + "\n"


def converted(table: pd.DataFrame) -> Section:
    """What converts, and how it trains."""
    rules = [column.removeprefix("trains_") for column in table if column.startswith("trains_")]
    made = Section(
        "What converts, and how it trains",
        "Rate is drawn for: each example its own, or one for the batch, where the model's code reads the rate as a "
        "number; no dropout: a weight decay alone is tuned. Responds: of the layers with parameters, how many can have "
        "a response. Rates bound: how many places read the tuned rate. Equal at zero: at a zero response, the outputs "
        "are those of the plain model. Equal merged: with responses drawn at random, `to_plain()` gives a model of the "
        "user's own class with the same outputs. Then, whether training steps run under each rule.",
        ["model", "rate is drawn for", "responds", "rates bound", "equal at zero", "equal merged", *rules],
    )
    for row in table.to_dict("records"):
        drawn = {"example": "each example", "batch": "the batch", "none": "no dropout"}[row["rate"]]
        cells = [row["model"], drawn, row["responding"], str(row["bound"])]
        cells += ["yes" if str(row[name]) == "True" else "no" for name in ("equal_at_zero", "equal_merged")]
        for rule in rules:
            outcome = row[f"trains_{rule}"]
            cells.append("yes" if outcome == "yes" else "no")
            if outcome != "yes":
                made.notes.append(f"{row['model']}, {rule}: {outcome}")
        made.rows.append(cells)
    return made


def left_plain(table: pd.DataFrame) -> Section:
    """Which layers stay plain, and why."""
    made = Section(
        "What stays plain",
        "Layers with parameters that get no response, by the reason that `net.conversion.plain` gives. They train as "
        "ever, and no rule but `stn` and `delta-stn` misses anything.",
        ["model", "layers", "why", "for instance"],
    )
    for row in table.to_dict("records"):
        paths = defaultdict(list)
        for path, reason in json.loads(row["left_plain"]).items():
            paths[reason].append(path.removeprefix("net."))
        made.rows += [[row["model"], str(len(of)), reason, f"`{of[0]}`"] for reason, of in paths.items()]
    whole = [row["model"] for row in table.to_dict("records") if row["left_plain"] == "{}"]
    made.notes += [f"All layers respond: {', '.join(whole)}."] if whole else []
    return made


def costs(cost: pd.DataFrame) -> Section:
    """What a step costs."""
    made = Section(
        "What a step of `auto` costs",
        "Median over rounds (quartiles) of processor time on one thread, of whole cycles that take turns in one "
        "process: five training steps, and the hyper-step of `auto`. Plain: the model in a loop of torch's own, with "
        "its own dropouts and the weight decay in the optimizer. Fixed: the plain network in this project's loop, "
        "which has the dropouts that follow a hyperparameter, and the weight decay in the loss. Operations: the "
        "floating-point operations of a cycle of `auto` over those of a plain one, which no implementation of the rule "
        "can do without: four forward passes in five steps, and two more on a quarter of a batch. Of the floor: what "
        "`auto` takes over what its operations alone would; below 1 where a forward pass for a measurement, which "
        "keeps no graph, is cheaper than its share of a training step.",
        ["model", "size", "examples", "parameters", "plain step, ms", "auto / plain", "auto / fixed", "fixed / plain"],
    )
    made.header += ["operations", "of the floor"]
    for row in cost.to_dict("records"):
        cells = [row["model"], row["size"], str(row["examples"]), f"{row['parameters']:,}", f"{row['plain_ms']:.1f}"]
        for name in ("auto_over_plain", "auto_over_fixed", "fixed_over_plain"):
            median, low, high = (NUMBER.format(row[key]) for key in (name, f"{name}_quartile_1", f"{name}_quartile_3"))
            cells.append(f"{median} ({low} to {high})")
        cells += [NUMBER.format(row["operations"]), NUMBER.format(row["auto_over_plain"] / row["operations"])]
        made.rows.append(cells)
    for size, rows in cost.groupby("size", sort=False):
        ratios = rows["auto_over_plain"]
        made.notes.append(
            f"{size}: the median of `auto` over plain is {ratios.min():.2f} to {ratios.max():.2f}, in the middle "
            f"{ratios.median():.2f}; at most 1.3 for {(ratios <= 1.3).sum()} of {len(ratios)}."
        )
    return made


if __name__ == "__main__":
    main()
