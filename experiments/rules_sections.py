"""The sections of the page of the update rules: what each is about, its table, and what to know beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from pages import Section
from rules import ORACLE, OUTSIDE, RANDOM, RULES, SETTINGS
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

MARK = "†"

Tables = Mapping[str, pd.DataFrame]


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


SECTIONS = (losses, demands, learning_rates, outside, placebos, starts, hyper_lrs, oracle, provenance)
"""In the order of the page."""
