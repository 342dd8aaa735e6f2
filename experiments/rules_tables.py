"""The tables and the picture of the update rules, from what experiments/rules.py wrote.

It reads experiments/results/rules/SETTING.parquet and writes README.md and curves.png beside them; the tables go to the
terminal too. An arm that was not run is named as such.

    python experiments/rules_tables.py
    python experiments/rules_tables.py --smoke-test   # trains the smoke runs of rules.py first, in a new folder
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pages import Section, markdown
from rules import ORACLE, OUTSIDE, RANDOM, RESULTS, RULES, SETTINGS
from rules_verdicts import (
    COST,
    FROZEN,
    NOT_RUN,
    PLACEBO,
    REPLAYED,
    ROUNDING,
    P,
    best_of,
    best_with_start,
    by_seed,
    difference,
    judge,
    numbers,
    of_random,
    paired,
    percent,
    relative_cost,
    spread,
    together,
)

from tune_stn.study.statistics import PairedDifference

MARK = "†"
SMOKE_ARMS = "plain,auto,auto/frozen,progress-ratio,random,lr,placebo"
TRIED = (
    "The gates of STN and of Delta-STN in the weights' own forward pass or beside it: on short runs most of their "
    "effect is one number, how much regularisation there is (the arms stn and delta-stn; progress-ratio has it "
    "without gates).",
    "The gains of validation and training as they are, not in proportion to the loss: nothing is seen any more where "
    "the training loss is next to nothing (mlp, 4 seeds: .592 for .586; digits, lr .2, 8 seeds: .159 for .149).",
    "The pressure `target * t - v` where training is undone as well (t < 0): once regularisation hurts both losses "
    "alike it rises further, to the end of the domains (digits, lr .1, 6 seeds: last validation loss 1.42 for .18).",
    "Perturbed hyperparameters for each example in the base step: no better at the target of .8 (mlp, 4 seeds: .586 "
    "at its best target, .588 without), worse on text-lstm (3.84 for 3.80), and the replay is no longer the run "
    "itself.",
    "A target of .8 or .7 in place of .6: .620 and .608 for .600 on mlp-affine, where plain is .614; .586 and .590 for "
    ".588 on mlp (5 seeds each); .142 and .145 for .152 on the digits (10 seeds). Twice the speed: .169 for .138 there "
    "(target .8).",
    "Averages of the weights over twice the time, gains smoothed over three times the time: .16 to .19 for .17 and "
    "less (digits, lr .2, 10 seeds).",
    "Pressure from the ratio of the losses themselves, training under a fifth of validation: .143 to .157 for .143 "
    "(digits, lr .1, 10 seeds); in language models the ratio is near 1 when they overfit.",
    "Sharing out by how much a hyperparameter narrows the gap between training and validation loss (dose on training "
    "less dose on validation examples): .613 on mlp, 4 seeds, no better than plain; its noise is larger than what it "
    "tells.",
    "Doses to the power of a half or two, or counted from three times the median: within .003 on mlp, 4 seeds.",
    "Coming down from start values that are too strong wherever both losses are near each other and neither moves, "
    "whatever has been learned: language models have near losses for long, so it took their regularisation away "
    "(transformer, 6 seeds: 4.057 for 4.047).",
    "A step size of .01 for the hyperparameters of the language tasks, as the papers have it for runs of 16,000 "
    "hyper-steps: they moved by a third of a domain in 65 measurements (transformer, 6 seeds: 4.047 for 4.002; ptb: "
    "3.778).",
    "A network taken for trapped only below a gain of .05, not .2: it comes down later from start values that are too "
    "strong (mlp, 24 starts: the worst at 1.17 times the median for 1.15); on the ResNet within its noise (4 seeds: "
    "1.716 for 1.751, plain 1.724).",
    "Steps by what all doses together are of the training loss: downward ones shorter where that is below .02 (mlp "
    ".573 for .575, digits .155 for .158, mlp-2560 .441 for .444, transformer 3.981 for 3.979; two to eight seeds): "
    "too little to tell; upward ones up to three times as long below .05: .582 for .573 on mlp.",
    "Gates by tanh and by exp for STN: a loss higher by .028 and .024 (digits, lr .03, 10 seeds, paired); antithetic "
    "noise +.005, half of the rows at the mean +.001, one hyperparameter at a time +.005.",
)
LIMITS = (
    "From start values so strong that the network learns nothing, a run must first come down from them; a short run "
    "loses much of its time so (the worst starts under Start values).",
    "It takes every hyperparameter for a regulariser that regularises more as it rises, and does not choose among "
    "them.",
    "The equal doses pay where hyperparameters differ in kind (mlp-affine); elsewhere progress-ratio alone does as "
    "well.",
    "It measures every fifth step or less often, so a run of fewer than about 50 measurements hardly moves anything.",
    "It keeps validation near training. Where a network does not overfit within the run, there is nothing to gain by "
    "it.",
)

Tables = Mapping[str, pd.DataFrame]


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
    parts = sections(tables)
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
        notes.append(
            "The schedule matters: its last values alone, held from the start, keep at most "
            f"{percent(max(kept))} of the gain; on {sum(share < 0 for share in kept)} tasks they are worse than plain "
            "training."
        )
    return "\n".join([markdown(header, rows), "", *(f"- {note}" for note in notes)])


def told(differences: Iterable[PairedDifference | None]) -> int:
    """How many of the paired differences have a p-value below the bound."""
    return sum(found is not None and found.p_value < P for found in differences)


# Sections


def sections(tables: Tables) -> list[Section]:
    makers = (losses, demands, learning_rates, outside, placebos, starts, hyper_lrs, oracle, provenance)
    return [make(tables) for make in makers]


def losses(tables: Tables) -> Section:
    """What each arm reaches."""
    made = Section(
        "Losses",
        "Mean over seeds of the validation loss at the best epoch, in brackets the test loss at that epoch. Cost: in "
        f"plain runs. Best of {RANDOM} random: for each seed the setting of least validation loss, held over a whole "
        f"run each. `{MARK}`: a lower validation loss than plain's, a higher test loss.",
        ["setting", "seeds", "plain, start values", "auto", "cost of auto", f"best of {RANDOM} random"],
    )
    made.header += ["progress-ratio", "stn", "delta-stn"]
    for name in every(tables):
        if name not in tables:
            made.rows.append([name, "0", *[NOT_RUN] * (len(made.header) - 2)])
            continue
        table = tables[name]
        plain, auto = by_seed(table, "plain"), by_seed(table, "auto")
        shared = plain.index.intersection(auto.index) if len(plain) and len(auto) else plain.index.union(auto.index)
        pairs = {arm: (by_seed(table, arm), by_seed(table, arm, "test_loss")) for arm in ("plain", *RULES)}
        pairs["random"] = (best_of(table, RANDOM), best_of(table, RANDOM, "test_loss"))
        order = ("plain", "auto", "cost", "random", "progress-ratio", "stn", "delta-stn")
        cells = {arm: both_losses(*pair, shared, pairs["plain"]) for arm, pair in pairs.items()}
        cells["cost"] = f"{relative_cost(table, 'auto'):.2f}" if len(auto) else NOT_RUN
        made.rows.append([name, str(len(shared)), *(cells[arm] for arm in order)])
        made.notes += warnings(name, table, shared)
    return made


def both_losses(
    val: pd.Series[float],
    test: pd.Series[float],
    seeds: pd.Index[int],
    plain: tuple[pd.Series[float], pd.Series[float]],
) -> str:
    """A cell of validation and test loss.

    Args:
        val: The validation losses by seed.
        test: The test losses by seed.
        seeds: The seeds that count, or none for all that there are.
        plain: The losses of the plain network, to mark a gain that the test loss does not have.
    """
    kept = val.index.intersection(seeds) if len(seeds) else val.index
    if not len(kept):
        return NOT_RUN
    fewer = "" if len(kept) == len(seeds) else f", {len(kept)} seeds"
    return f"{val[kept].mean():.4f} ({test[kept].mean():.4f}){mark(val, test, *plain)}{fewer}"


def mark(
    val: pd.Series[float], test: pd.Series[float], other_val: pd.Series[float], other_test: pd.Series[float]
) -> str:
    """The mark of a lower validation loss with a higher test loss than another arm's, over common seeds."""
    val, test, other_val, other_test = together(val, test, other_val, other_test)
    return MARK if len(val) and val.mean() < other_val.mean() and test.mean() > other_test.mean() else ""


def warnings(name: str, table: pd.DataFrame, shared: pd.Index[int]) -> list[str]:
    """What makes the arms of a setting less alike than a row of a table says.

    Args:
        name: The name of the setting.
        table: Its runs.
        shared: The seeds that its row counts.
    """
    notes = []
    if name not in SETTINGS:
        notes.append(f"{name}: no setting of `rules.py` has that name.")
    main = table[table["arm"].isin(["plain", *RULES]) | table["arm"].str.fullmatch(r"random-\d+|auto/.+")]
    for column in ("lr", "epochs"):
        values = sorted(main[column].unique())
        if len(values) > 1:
            notes.append(f"{name}: arms differ in `{column}`: {', '.join(f'{value:g}' for value in values)}.")
    for arm in RULES:
        commits = table[table["arm"] == arm]["commit"].unique()
        if len(commits) > 1:
            notes.append(f"{name}: the runs of {arm} are of several commits: {', '.join(c[:8] for c in commits)}.")
    changed = {text for text in main[~main["arm"].str.endswith("/frozen")]["changes"] if json.loads(text)}
    if changed:
        notes.append(f"{name}: some runs have other settings: {'; '.join(sorted(changed))}.")
    alone = sorted({*by_seed(table, "plain").index, *by_seed(table, "auto").index} - set(shared))
    if alone:
        notes.append(f"{name}: plain or auto was not run at seed {numbers(alone)}; the row leaves these seeds out.")
    random = table[table["arm"].str.fullmatch(r"random-\d+")].groupby("seed").size()
    short = random[random < RANDOM]
    if len(short):
        counts = ", ".join(f"seed {seed} has {count}" for seed, count in short.items())
        notes.append(f"{name}: not all {RANDOM} random settings were run: {counts}.")
    gone = main[main["diverged"] != ""].groupby("arm").size()
    if len(gone):
        one = gone[~gone.index.str.startswith("random-")]
        counts = [f"{count} of {arm}" for arm, count in one.items()]
        counts += [f"{gone.sum() - one.sum()} of random"] if gone.sum() > one.sum() else []
        notes.append(f"{name}: diverged runs: {', '.join(counts)}.")
    return notes


def demands(tables: Tables) -> Section:
    """Whether `auto` holds what it must."""
    made = Section(
        "What the gain is made of",
        "Differences of validation losses, paired by seed, with 95 % intervals and sign-flip p. Shares: (plain - arm) "
        "/ (plain - auto) of the means over common seeds. The demands: a run costs at most "
        f"{COST} plain runs; its loss is below the best of {RANDOM} random settings (p < {P}); the replayed schedule "
        f"keeps at least {percent(REPLAYED)} of the gain over plain; the frozen arm has at most {percent(FROZEN)}; "
        f"it is not worse than progress-ratio (p < {P}). `{MARK}`: the validation loss is lower, the test loss higher. "
        f"Beside the demand: the best of as many settings, of which the first are the start values.",
        ["setting", "seeds", "cost", "auto minus plain", f"auto minus best of {RANDOM}"],
    )
    made.header += [f"auto minus best of start and {RANDOM - 1}", "replay keeps"]
    made.header += ["last values keep", "frozen has", "auto minus progress-ratio", "holds?"]
    held, progress = [], []
    for name in every(tables):
        verdict = judge(tables[name]) if name in tables else None
        if verdict is None:
            made.rows.append([name, "0", *[NOT_RUN] * (len(made.header) - 2)])
            continue
        table = tables[name]
        pair = by_seed(table, "auto"), by_seed(table, "auto", "test_loss")
        others = {arm: (by_seed(table, arm), by_seed(table, arm, "test_loss")) for arm in ("plain", "progress-ratio")}
        others["search"] = best_of(table, RANDOM), best_of(table, RANDOM, "test_loss")
        count = len(pair[0])
        cells = {arm: paired(difference(pair[0], b[0]), count) + mark(*pair, *b) for arm, b in others.items()}
        shares = []
        for control in ("replayed", "last", "frozen"):
            has = len(together(others["plain"][0], pair[0], by_seed(table, f"auto/{control}"))[0])
            shares.append(percent(verdict.shares[control]) + (f", {has} seeds" if 0 < has < count else ""))
        start = paired(difference(pair[0], best_with_start(table)), count)
        row = [name, str(count), f"{verdict.cost:.2f}", cells["plain"], cells["search"], start, *shares]
        made.rows.append([*row, cells["progress-ratio"], verdict.words])
        held.append(verdict.words == "yes")
        progress += [verdict.progress] if verdict.progress is not None else []
    told = [found.mean < 0 for found in progress if found.p_value < P]
    made.notes.append(f"All demands hold on {sum(held)} of {len(SETTINGS)} settings; {len(held)} have runs of auto.")
    made.notes.append(
        f"auto is better than progress-ratio on {sum(told)} settings, worse on {len(told) - sum(told)}, not told from "
        f"it on {len(progress) - len(told)}."
    )
    return made


def learning_rates(tables: Tables) -> Section:
    """The plain network at several learning rates."""
    made = Section(
        "Learning rate of the plain network",
        "Mean validation loss at the start values over the seeds that all rates of the setting have; the best in bold.",
        ["setting", "lr", "val. loss [95 %]", "test loss", "seeds", "diverged", ""],
    )
    for name, table in tables.items():
        rates = sorted((arm for arm in table["arm"].unique() if arm.startswith("lr-")), key=lambda arm: float(arm[3:]))
        if not rates:
            continue
        runs = {arm: table[table["arm"] == arm].set_index("seed") for arm in rates}
        seeds = sorted(set.intersection(*(set(run.index) for run in runs.values())))
        if not seeds:
            made.notes.append(f"{name}: no seed has all rates.")
        means = {arm: by_seed(table, arm).reindex(seeds or run.index).mean() for arm, run in runs.items()}
        best = min(means, key=lambda arm: means[arm])
        used = table[table["arm"].isin(["plain", "auto"])]["lr"].unique()
        for arm, run in runs.items():
            loss = spread(by_seed(table, arm).reindex(seeds or run.index))
            remarks = ["the other tables' rate"] if np.isclose(used, float(arm[3:])).any() else []
            remarks += ["the best is at the end of the sweep"] if arm == best and arm in (rates[0], rates[-1]) else []
            cells = [
                f"**{loss}**" if arm == best else loss,
                f"{run['test_loss'].reindex(seeds or run.index).mean():.4f}",
            ]
            diverged = str((run["diverged"] != "").sum())
            made.rows.append([name, arm[3:], *cells, str(len(seeds or run)), diverged, "; ".join(remarks)])
        for rate in used:
            if not np.isclose(rate, float(best[3:])):
                made.notes.append(
                    f"{name}: the other tables' arms train at {rate:g}, which is not the best of the sweep."
                )
    return with_missing(made, tables)


def outside(tables: Tables) -> Section:
    """Every way to tune, with the learning rate searched from outside, at equal cost."""
    made = Section(
        "Learning rate searched from outside",
        f"The best run, by validation loss, that fits into the cost of {RANDOM} plain runs, each at a learning rate of "
        "its own: drawn evenly on a log scale over the sweep's range, the same for all; TPE asks for its own. "
        "`random` and `tpe` search the hyperparameters too, `plain` holds the start values, the rest tune them.",
        ["setting", "way", "seeds", "runs that fit", "val. loss [95 %]", "test loss", "lr of the best, median"],
    )
    made.header.append("auto minus this [95 %]")
    for name, table in tables.items():
        best = {way: best_within(table, way) for way in OUTSIDE}
        for way, found in best.items():
            if not len(found):
                continue
            against = difference(best["auto"]["val_loss"], found["val_loss"]) if len(best["auto"]) else None
            cells = [str(len(found)), f"{found['runs'].mean():.0f}", spread(found["val_loss"])]
            cells += [f"{found['test_loss'].mean():.4f}", f"{found['lr'].median():.3g}"]
            made.rows.append([name, way, *cells, "" if way == "auto" or against is None else paired(against)])
    return with_missing(made, tables)


def best_within(table: pd.DataFrame, way: str) -> pd.DataFrame:
    """The best run of a way to tune that fits into the cost of `RANDOM` plain runs, and how many fit; by seed.

    Args:
        table: The runs of a setting.
        way: One of `OUTSIDE`; a seed counts where its runs use the cost up.
    """
    runs = table[table["arm"].str.fullmatch(rf"outside/{way}-\d+")]
    runs = runs.assign(number=runs["arm"].str.extract(r"(\d+)$")[0].astype(int), share=runs["cost"] / runs["epochs"])
    found = {}
    for seed, one in runs.sort_values("number").groupby("seed"):
        fitting = one[one["share"].cumsum() <= RANDOM + ROUNDING]
        if len(one) == RANDOM or len(fitting) < len(one):
            best = fitting.loc[fitting["val_loss"].fillna(math.inf).idxmin()]
            found[seed] = {"runs": len(fitting), **best[["val_loss", "test_loss", "lr"]]}
    return pd.DataFrame.from_dict(found, orient="index")


def placebos(tables: Tables) -> Section:
    """Hyperparameters without effect."""
    made = Section(
        "Placebo",
        "Plain and auto where no hyperparameter has an effect: auto must not gain. Within: the interval of the paired "
        f"difference has 0 in it, and the mean difference is at most {PLACEBO} either way.",
        ["setting", "seeds", "plain", "auto", "auto minus plain [95 %]", "within?"],
    )
    for name, table in tables.items():
        plain, auto = (by_seed(table, f"placebo-{arm}") for arm in ("plain", "auto"))
        found = difference(auto, plain)
        if found is None:
            continue
        plain, auto = together(plain, auto)
        fails = [] if abs(found.mean) <= PLACEBO + ROUNDING else [f"above {PLACEBO}"]
        if math.isnan(found.low):
            fails.append("too few seeds for an interval")
        elif not found.low <= 0 <= found.high:
            fails.append("0 is outside the interval")
        cells = [str(found.n), f"{plain.mean():.4f}", f"{auto.mean():.4f}", paired(found)]
        made.rows.append([name, *cells, f"no: {'; '.join(fails)}" if fails else "yes"])
    return with_missing(made, tables)


def starts(tables: Tables) -> Section:
    """`auto` from random start values."""
    made = Section(
        "Start values",
        "auto at seed 0 from random start values, and the plain network with the same values held from start to end.",
        ["setting", "starts", "auto, median", "auto, worst", "auto from the task's start", "diverged", "restarts"],
    )
    made.header += ["held, median", "held, worst", "auto is better at"]
    for name, table in tables.items():
        runs = table[table["arm"].str.fullmatch(r"starts-\d+")]
        if not len(runs):
            continue
        loss = runs.set_index(runs["arm"].str.removeprefix("starts-"))["val_loss"].fillna(math.inf)
        held = table[table["arm"].str.fullmatch(r"random-\d+") & (table["seed"] == 0)]
        held = held.set_index(held["arm"].str.removeprefix("random-"))["val_loss"].fillna(math.inf)
        held = held[held.index.intersection(loss.index)]
        usual = by_seed(table, "auto").reindex([0]).iloc[0]
        cells = [str(len(runs)), f"{loss.median():.4f}", f"{loss.max():.4f}"]
        cells += [NOT_RUN if math.isnan(usual) else f"{usual:.4f}"]
        cells += [str((runs["diverged"] != "").sum()), str(runs["restarts"].sum())]
        better = f"{(loss[held.index] < held).sum()} of {len(held)}"
        cells += [f"{held.median():.4f}", f"{held.max():.4f}", better] if len(held) else [NOT_RUN] * 3
        made.rows.append([name, *cells])
    return with_missing(made, tables)


def hyper_lrs(tables: Tables) -> Section:
    """`auto` at fixed step sizes and the automatic one."""
    made = Section(
        "Step size of the hyperparameters",
        "auto at fixed step sizes and at the automatic one; the best of each length in bold.",
        [
            "setting",
            "hyper_lr",
            "other changes",
            "epochs",
            "val. loss [95 %]",
            "test loss",
            "seeds",
            "cost",
            "diverged",
        ],
    )
    for name, table in tables.items():
        runs = table[table["arm"].str.startswith("hyper-lr-")].copy()
        if not len(runs):
            continue
        changes = runs["changes"].map(json.loads)
        runs["hyper_lr"] = [str(one.get("hyper_lr", arm[9:])) for one, arm in zip(changes, runs["arm"], strict=True)]
        rest = [{key: value for key, value in one.items() if key != "hyper_lr"} for one in changes]
        runs["rest"] = [", ".join(f"{key}={value}" for key, value in sorted(one.items())) for one in rest]
        for (other, epochs), alike in runs.groupby(["rest", "epochs"]):
            groups = {str(key): group for key, group in alike.groupby("hyper_lr")}
            means = {key: group["val_loss"].fillna(math.inf).mean() for key, group in groups.items()}
            best = min(means, key=lambda key: means[key])
            for key in sorted(groups, key=lambda key: (key == "auto", key)):
                group = groups[key]
                loss = spread(group["val_loss"].fillna(math.inf))
                cells = [f"**{loss}**" if key == best else loss, f"{group['test_loss'].mean():.4f}", str(len(group))]
                cells += [f"{(group['cost'] / group['epochs']).mean():.2f}", str((group["diverged"] != "").sum())]
                made.rows.append([name, key, str(other), str(epochs), *cells])
    return with_missing(made, tables)


def oracle(tables: Tables) -> Section:
    """What fixed values can reach."""
    made = Section(
        "Fixed random settings",
        f"The {ORACLE} random settings of seed 0, held over a whole run each: what there is to gain. "
        "The last two columns say how many of them have a lower validation loss than plain at the start values, and "
        "than auto, at the same seed.",
        ["setting", "seeds", f"best of {ORACLE}", f"median of {ORACLE}", "plain", "auto", "better than plain"],
    )
    made.header.append("better than auto")
    for name, table in tables.items():
        random = of_random(table, ORACLE)
        if not random:
            continue
        best = best_of(table, ORACLE)
        medians = [float(runs["val_loss"].median()) for runs in random.values()]
        means, counts = [], []
        for arm in ("plain", "auto"):
            loss = by_seed(table, arm)
            common = [seed for seed in random if seed in loss.index]
            better = [float((random[seed]["val_loss"] < loss[seed]).sum()) for seed in common]
            means.append(f"{loss[common].mean():.4f}" if common else NOT_RUN)
            counts.append(f"{np.mean(better):.1f} of {ORACLE}" if common else NOT_RUN)
        made.rows.append([name, str(len(random)), f"{best.mean():.4f}", f"{np.mean(medians):.4f}", *means, *counts])
    return with_missing(made, tables)


def provenance(tables: Tables) -> Section:
    """Seeds, hours, commits and versions."""
    made = Section(
        "Runs",
        "Every run used one thread; the hours are of processor time in training and evaluation.",
        ["setting", "runs", "arms", "seeds", "CPU hours", "commits (runs)", "versions"],
    )
    for name, table in tables.items():
        commits = table.groupby("commit", sort=False).size()
        cells = [str(len(table)), ", ".join(sorted({family(arm) for arm in table["arm"]})), numbers(table["seed"])]
        cells += [f"{table['cpu_s'].sum() / 3600:.2f}", ", ".join(f"{c[:8] or '?'} ({n})" for c, n in commits.items())]
        made.rows.append([name, *cells, "; ".join(sorted(table["versions"].unique()))])
    hours = sum(table["cpu_s"].sum() for table in tables.values()) / 3600
    made.notes.append(f"{sum(map(len, tables.values())):,} runs, {hours:.1f} CPU hours in all.")
    return with_missing(made, tables)


def with_missing(section: Section, tables: Tables) -> Section:
    """The section with a note of the settings that have no row in it."""
    shown = {row[0] for row in section.rows}
    missing = [name for name in every(tables) if name not in shown]
    if missing:
        section.notes.append(f"Not run: {', '.join(missing)}.")
    return section


def every(tables: Tables) -> list[str]:
    """All settings of `rules.SETTINGS`, and then the others that have runs."""
    return [*SETTINGS, *(name for name in tables if name not in SETTINGS)]


def family(arm: str) -> str:
    """The name that `rules.py --arms` has for an arm."""
    if arm.startswith("placebo-"):
        return "placebo"
    named = re.sub(r"/(replayed|last)$", "", arm)  # rules bring these along
    return re.sub(r"^(random|lr|hyper-lr|starts|outside)[-/].*$", r"\1", named)


# The picture


def draw(tables: Tables) -> Figure | None:
    """Mean validation loss against cost of plain, auto and its replayed schedule, one panel a setting.

    Args:
        tables: The runs of each setting.
    """
    shown = {}
    for name, table in tables.items():
        arms = {arm: set(table[table["arm"] == arm]["seed"]) for arm in ("plain", "auto", "auto/replayed")}
        seeds = arms["plain"] & arms["auto"]
        if seeds:
            shown[name] = (table, seeds, [arm for arm, has in arms.items() if seeds <= has])
    if not shown:
        return None
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(max(3.4 * columns, 4.5), 2.6 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    styles = {"plain": ("0.45", "-"), "auto": ("tab:blue", "-"), "auto/replayed": ("tab:orange", "--")}
    lines = {}
    for panel, (name, (table, seeds, arms)) in zip(axes, shown.items(), strict=False):
        tops, bottoms = [], []
        for arm in arms:
            runs = table[(table["arm"] == arm) & table["seed"].isin(seeds)]
            mean = mean_curve(list(runs["val_curve"]))
            cost = np.arange(1, len(mean) + 1) * relative_cost(runs, arm)
            colour, dashes = styles[arm]
            (lines[arm],) = panel.plot(cost, mean, dashes, color=colour, linewidth=1.4)
            finite = mean[np.isfinite(mean)]
            if len(finite):
                bottoms.append(finite.min())
                tops.append(np.median(finite) if len(finite) > 2 else finite.max())
        if bottoms:  # the first epochs are far above what is to be seen
            room = max(max(tops) - min(bottoms), 1e-3)
            panel.set_ylim(min(bottoms) - 0.15 * room, max(tops) + 1.2 * room)
        panel.set_title(f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in axes[len(shown) :]:
        panel.set_visible(False)
    figure.legend(list(lines.values()), list(lines), loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    figure.supxlabel("cost (plain epochs)", fontsize=9)
    figure.supylabel("validation loss", fontsize=9)
    return figure


def mean_curve(curves: list[np.ndarray]) -> np.ndarray:
    """The mean over runs at each epoch, up to the end of the shortest."""
    return np.mean([curve[: min(map(len, curves))] for curve in curves], axis=0)


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
