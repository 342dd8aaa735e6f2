"""The tables that the pages show, each made from the committed result files; `readme.py` puts them in.

A function for each table gives it as Markdown. `TABLES` names them as the marks of the pages do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pages import markdown

from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.results import load_results
from tune_stn.study.statistics import mean_interval
from tune_stn.study.summary import with_interval

RESULTS = Path(__file__).parent / "results"
COMPARED = ("digits-mlp", "fashion-mnist-cnn")
# Of the Delta-STN paper's table, from small to large.
VISION = ("fashion-mnist-mlp", "fashion-mnist-cnn", "cifar10-alexnet", "cifar10-vgg16", "cifar10-resnet18")
NETWORKS = {
    "mlp": "MLP, 1200 wide",
    "cnn": "CNN",
    "lstm-small": "LSTM 35x20x200",
    "lstm-large": "LSTM 70x40x650",
    "transformer": "transformer block",
}


def all_methods() -> str:
    """All methods on both tasks, as short as can be."""
    tables = {task: methods_of(task) for task in COMPARED}
    rows = []
    for method in tables[COMPARED[0]].index:
        cells = [method]
        for table in tables.values():
            row = table.loc[method]
            cells.append(with_interval(*(row[f"best_val_loss{end}"] for end in ("", "_low", "_high"))))
            cells.append("" if pd.isna(row["mean"]) else f"{row['mean']:+.4f}, p = {row['p_value']:.3f}")
        rows.append(cells)
    header = ["method"]
    for task, table in tables.items():
        header += [f"{task} ({table['seeds'].max()} seeds) [95 %]", "minus the best's, paired"]
    return markdown(header, rows)


def all_methods_long(task: str) -> str:
    rows = []
    for method, row in methods_of(task).iterrows():
        cells = [str(method), f"{row['seeds']}", f"{row['trials'] / row['seeds']:.0f}"]
        for column in ("best_val_loss", "test_loss_at_best"):
            cells.append(with_interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high"))))
        difference = f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], p = {row['p_value']:.3f}"
        cells.append("" if pd.isna(row["mean"]) else difference)
        rows.append([*cells, *(f"{row[column]:.0f}" for column in ("cost", "wall_time_s"))])
    header = ["method", "seeds", "trials a seed", "best val. loss [95 %]", "its test loss [95 %]"]
    return markdown([*header, "val. loss minus the best's, paired [95 %]", "cost", "wall s"], rows)


def methods_of(task: str) -> pd.DataFrame:
    """A row for each method, with its paired difference to the best one."""
    folder = RESULTS / "all_methods" / task
    table = pd.read_csv(folder / "summary.csv", index_col="method")
    return table.join(pd.read_csv(folder / "differences.csv", index_col="method")[["mean", "low", "high", "p_value"]])


def speed_up() -> str:
    rows = []
    for task in COMPARED:
        for row in pd.read_csv(RESULTS / "all_methods" / task / "speed_up.csv").to_dict("records"):
            reached = f"{row['reached']} of {row['n']}"
            ratios = [f"{row[name]:.1f}" for name in ("median", "median_until_found")]
            means = "never" if pd.isna(row["of_means"]) else f"{row['of_means']:.1f}"
            rows.append([task, row["method"], row["baseline"], reached, *ratios, means])
    header = ["task", "method", "best baseline", "seeds at which it is reached", "median speed-up"]
    return markdown([*header, "counting what it spent until it found its best", "of the mean curves"], rows)


def population() -> str:
    rows = []
    for task in COMPARED:
        for row in pd.read_csv(RESULTS / "all_methods" / task / "population.csv").to_dict("records"):
            what = {"best_val_loss": "best val. loss", "test_loss_at_best": "its test loss"}[row["column"]]
            cells = [task, what, f"{row['stn-population']:.4f}", f"{row['stn']:.4f}"]
            difference = f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], p = {row['p_value']:.3f}"
            rows.append([*cells, difference])
    return markdown(["task", "", "population", "restarts", "population minus restarts, paired [95 %]"], rows)


def search_around_optuna() -> str:
    table = pd.read_csv(RESULTS / "search_around_optuna" / "summary.csv")
    rows = []
    for row in table.to_dict("records"):
        what = {"best_val_loss": "best val. loss", "test_loss_at_best": "its test loss"}[row["what"]]
        cells = [f"{row['cost']:.0f}", what]
        for side in ("stn inside tpe", "tpe"):
            cells.append(with_interval(*(row[f"{side}{end}"] for end in ("", " low", " high"))))
        difference = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], p = {row['p_value']:.3f}"
        rows.append([*cells, difference])
    header = ["cost", f"{table['seeds'].max()} seeds", "STN inside TPE [95 %]", "TPE alone [95 %]"]
    return markdown([*header, "difference, paired [95 %]"], rows)


def tune_overhead() -> str:
    row = pd.read_csv(RESULTS / "tune_overhead" / "summary.csv").iloc[0]
    rows = []
    for side, what in (("plain", "beside it, in turns"), ("alone", "without Ray in memory")):
        ends = (100 * row[f"over_{side}{end}"] for end in ("", "_quartile_1", "_quartile_3"))
        rows.append([f"the same loop {what}", "{:.2f} ({:.2f} to {:.2f})".format(*ends), f"{row[f'{side}_s']:.2f}"])
    return markdown(["against", "an epoch under Tune takes more, % (quartiles)", "its epoch, s"], rows)


def export_scale() -> str:
    table = pd.read_csv(RESULTS / "export_scale" / "stages.csv")
    rows = [
        [row["stage"], *(f"{row[column]:.1f}" for column in ("seconds", "cpu_seconds")), f"{row['peak_mb']:.0f}"]
        for row in table.to_dict("records")
    ]
    parquet = table[table["stage"] != "export csv"]
    rows.append(["all but CSV", *(f"{parquet[column].sum():.1f}" for column in ("seconds", "cpu_seconds")), ""])
    return markdown(["", "s", "s of CPU", "peak memory so far, MB"], rows)


def faults() -> str:
    table = pd.read_csv(RESULTS / "faults" / "rounds.csv")
    rows = []
    for kind in dict.fromkeys(table["kind"]):
        rounds = table[table["kind"] == kind]
        counts = [str((rounds["outcome"] == outcome).sum()) for outcome in ("equal", "refused")]
        other = ", ".join(rounds.loc[~rounds["outcome"].isin(["equal", "refused"]), "outcome"])
        rows.append([kind, str(len(rounds)), *counts, other, f"{rounds['seconds'].max():.0f}"])
    header = ["fault", "rounds", "ended with the undisturbed tables", "refused by a line that says why", "other"]
    return markdown([*header, "s at most"], rows)


def regularisation_gain() -> str:
    folders = sorted((RESULTS / "regularisation_gain").iterdir())
    losses = {}
    for folder in folders:
        final = last_of_each_run(load_results(folder).incumbent).set_index("seed")
        losses[folder.name] = final[["best_val_loss", "test_loss_at_best"]]
    names = {"fixed": "no regularisation", "stn": "STN", "delta-stn": "Delta-STN"}
    rows = []
    for name in [name for name in names if name in losses]:
        val, test = losses[name]["best_val_loss"], losses[name]["test_loss_at_best"]
        ratio = val / losses["fixed"]["best_val_loss"]
        interval = mean_interval(ratio.to_numpy())
        each = ", ".join(f"{loss:.4f}" for loss in val)
        rows.append([names[name], each, f"{val.mean():.4f}", f"{test.mean():.4f}"])
        rows[-1].append("1" if name == "fixed" else with_interval(interval.mean, interval.low, interval.high))
    header = ["", "best val. loss by seed", "mean", "its test loss, mean", "val. loss over unregularised [95 %]"]
    return markdown(header, rows)


def step_cost() -> str:
    table = pd.read_csv(RESULTS / "step_cost" / "cpu.csv")
    rows = []
    for (model, threads, step), group in table.groupby(["model", "threads", "step"], sort=False):
        by_form = group.set_index(["response", "share"])
        cells = [str(model), str(threads), str(step)]
        for form in (("full", 1.0), ("8", 1.0), ("gate", 1.0), ("full", 0.25), ("auto", 1.0), ("auto", 0.25)):
            if form not in by_form.index:
                cells.append("")
                continue
            row = by_form.loc[form]
            spread = f"{row['quartile_1']:.2f} to {row['quartile_3']:.2f}"
            cells.append(f"{row['over_plain']:.2f} ({spread}); {row['memory_over_plain']:.2f}")
        rows.append([*cells[:-2], cells[-2] or cells[-1]])
    header = ["network", "threads", "step", "full", "rank 8", "gate-only", "full, quarter batch", "automatic"]
    note = "Median of time over a plain step (quartiles); then peak memory over that of a plain step."
    rounds, torch_version = table.loc[0, ["rounds", "torch"]]
    return f"{markdown(header, rows)}\n\n{note} CPU, {rounds} rounds (large LSTM: a sixth), torch {torch_version}."


def response_size() -> str:
    table = pd.read_csv(RESULTS / "response_size" / "summary.csv", dtype={"response": str})
    rows = []
    for row in table.sort_values(["task", "algorithm", "best_val_loss"]).to_dict("records"):
        part = "" if row["share"] == 1 else f", {row['share']:g} of a batch"
        cells = [
            f"{row['task']} ({row['seeds']} seeds)",
            row["algorithm"],
            f"{row['response']}{part}",
            f"{row['cost']:.0f}",
        ]
        for column in ("best_val_loss", "test_loss_at_best"):
            cells.append(with_interval(row[column], row[f"{column}_low"], row[f"{column}_high"]))
        difference, p = row["best_val_loss_minus_full"], row["best_val_loss_p"]
        low, high = row["best_val_loss_minus_full_low"], row["best_val_loss_minus_full_high"]
        cells.append("" if pd.isna(difference) else f"{difference:+.4f} [{low:+.4f}, {high:+.4f}], p = {p:.2f}")
        rows.append(cells)
    header = ["task", "algorithm", "response", "cost", "best val. loss [95 %]", "its test loss [95 %]"]
    return markdown([*header, "val. loss minus full's, paired [95 %]"], rows)


def replay() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "replay" / "summary.csv").to_dict("records"):
        cells = [row["row"], f"{row['cost']:.0f}"]
        for column in ("best_val_loss", "test_loss_at_best"):
            cells.append(with_interval(row[column], row[f"{column}_low"], row[f"{column}_high"]))
        for column in ("best_val_loss", "test_loss_at_best"):
            difference, low, high = (row[f"{column}_minus_fixed{end}"] for end in ("", "_low", "_high"))
            cells.append("" if pd.isna(difference) else f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]")
        rows.append(cells)
    header = ["dropout rate", "cost", "best val. loss [95 %]", "its test loss [95 %]"]
    return markdown(
        [*header, "val. loss minus the fixed one's, paired", "test loss minus the fixed one's, paired"], rows
    )


def ptb_tuning() -> str:
    """The layout of table 2 of the STN paper, its left half."""
    folder = RESULTS / "ptb_tuning" / "ptb-lstm-cpu"
    differences = pd.read_csv(folder / "differences.csv", index_col="method")
    rows = []
    for row in pd.read_csv(folder / "table.csv").to_dict("records"):
        cells = [row["method"], f"{row['trials']:.0f}", f"{row['cost']:.0f}"]
        for column in ("val_perplexity", "test_perplexity", "val_loss", "test_loss"):
            cells.append(with_interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high"))))
        rows.append([*cells, paired(differences.reindex([row["method"]]).iloc[0])])  # the best has no difference
    header = ["method", "trials a seed", "cost", "val. perplexity [95 %]", "test perplexity [95 %]", "val. loss [95 %]"]
    return markdown([*header, "test loss [95 %]", "val. loss minus the best's, paired [95 %]"], rows)


def ptb_schedule() -> str:
    """The layout of table 1 of the STN paper."""
    rows = []
    for row in pd.read_csv(RESULTS / "ptb_schedule" / "ptb-lstm-cpu" / "table.csv").to_dict("records"):
        cells = [row["row"], f"{row['rate']:.2f}", f"{row['cost']:.0f}"]
        for column in ("val_perplexity", "test_perplexity"):
            cells.append(with_interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high"))))
        for split in ("val", "test"):
            difference, low, high, p = (row[f"{split}_minus_fixed{end}"] for end in ("", "_low", "_high", "_p"))
            cells.append(paired({"mean": difference, "low": low, "high": high, "p_value": p}))
        rows.append(cells)
    header = ["output dropout", "its last rate", "cost", "val. perplexity [95 %]", "test perplexity [95 %]"]
    return markdown(
        [*header, "val. loss minus the fixed one's, paired [95 %]", "test loss minus the fixed one's, paired [95 %]"],
        rows,
    )


def cifar10_tuning() -> str:
    """The layout of table 2 of the STN paper, its right half."""
    return vision(RESULTS / "cifar10_tuning" / "cpu")


def vision(folder: Path) -> str:
    differences = pd.read_csv(folder / "differences.csv", index_col="method")
    rows = []
    for row in pd.read_csv(folder / "table.csv").to_dict("records"):
        cells = [row["method"], f"{row['seeds']}", f"{row['trials'] / row['seeds']:.0f}", f"{row['cost']:.0f}"]
        for column in ("best_val_loss", "test_loss_at_best"):
            cells.append(with_interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high"))))
        cells += [f"{100 * row[f'{split}_accuracy']:.1f}" for split in ("val", "test")]
        rows.append([*cells, paired(differences.reindex([row["method"]]).iloc[0])])  # the best has no difference
    header = [
        "method",
        "seeds",
        "trials a seed",
        "cost",
        "best val. loss [95 %]",
        "its test loss [95 %]",
        "val. acc., %",
    ]
    return markdown([*header, "test acc., %", "val. loss minus the best's, paired [95 %]"], rows)


def delta_stn() -> str:
    """The layout of the Delta-STN paper's table: validation loss, and test loss there."""
    tables = {network: pd.read_csv(RESULTS / "delta_stn" / f"{network}-cpu" / "table.csv") for network in VISION}
    rows = []
    for method in ("random", "gp-bo", "stn", "delta-stn"):
        cells = [method]
        for table in tables.values():
            row, least = table.set_index("method").loc[method], table["best_val_loss"].min()
            losses = f"{row['best_val_loss']:.4f} ({row['test_loss_at_best']:.4f})"
            cells.append(f"**{losses}**" if row["best_val_loss"] == least else losses)
        rows.append(cells)
    return markdown(
        ["val. loss (test loss)", *(f"{name}, {t['seeds'].max()} seeds" for name, t in tables.items())], rows
    )


def vision_steps() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "vision_cost" / "cpu-steps.csv").to_dict("records"):
        spread = f"{row['over_plain']:.2f} ({row['quartile_1']:.2f} to {row['quartile_3']:.2f})"
        cells = [row["network"], f"{row['threads']}", row["algorithm"], f"{row['images_per_second']:,.0f}", spread]
        shares = [f"{100 * row[f'share_of_{what}']:.0f}" for what in ("matrix_rate", "bandwidth")]
        rows.append([*cells, *shares, f"{row['memory_mib']:.0f}"])
    header = ["network", "threads", "step", "images a second", "time over plain (quartiles)", "% of the matrix rate"]
    return markdown([*header, "% of the bandwidth", "peak memory, MiB"], rows)


def vision_epochs() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "vision_cost" / "cpu-epochs.csv").to_dict("records"):
        cells = [row["network"], f"{row['threads']}", row["algorithm"], f"{row['images']:,}", f"{row['seconds']:.1f}"]
        parts = [row["share_of_data"], row["share_of_augmentation"]]
        rows.append([*cells, *(f"{100 * part:.1f}" for part in (*parts, sum(parts)))])
    header = ["network", "threads", "algorithm", "images", "s an epoch", "data, %", "augmentation, %", "together, %"]
    return markdown(header, rows)


def paired(difference: Any) -> str:
    """Of a row with `mean`, `low`, `high` and `p_value`; empty for the one that the others are compared with."""
    if pd.isna(difference["mean"]):
        return ""
    ends = f"[{difference['low']:+.4f}, {difference['high']:+.4f}]"
    return f"{difference['mean']:+.4f} {ends}, p = {difference['p_value']:.2f}"


def lstm_cost() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "lstm_cost" / "cpu.csv").to_dict("records"):
        spread = f"{row['over_plain']:.2f} ({row['quartile_1']:.2f} to {row['quartile_3']:.2f})"
        ratios = [f"{row[name]:.2f}" for name in ("operations_over_plain", "memory_over_plain", "share_of_floor")]
        rows.append([row["size"], f"{row['threads']}", row["layer"], spread, *ratios])
    header = ["time x batch x hidden", "threads", "layer", "time over nn.LSTM (quartiles)", "operations", "peak memory"]
    return markdown([*header, "share of the floor"], rows)


def start_convergence() -> str:
    table = pd.read_csv(RESULTS / "start_convergence" / "spread.csv")
    shown = sorted({0, table["epoch"].max() // 4, table["epoch"].max() // 2, table["epoch"].max()})
    rows = [
        [f"seed {seed}", *(f"{group.set_index('epoch')['range'][epoch]:.3f}" for epoch in shown)]
        for seed, group in table.groupby("seed")
    ]
    return markdown(["range of the five values", *(f"epoch {epoch}" for epoch in shown)], rows)


def start_values() -> str:
    runs = pd.read_csv(RESULTS / "start_values" / "runs.csv")
    rows = []
    for (task, algorithm, response, given), group in runs.groupby(
        ["task", "algorithm", "response", "input"], sort=False
    ):
        losses = group["best_val_loss"]
        cells = [task, algorithm, response, given, str(len(group)), f"{losses.median():.3f}", f"{losses.max():.3f}"]
        rows.append([*cells, str(group["restarts"].sum()), str(group["diverged"].sum())])
    header = ["task", "algorithm", "response", "its input", "starts", "median best val. loss", "worst"]
    return markdown([*header, "restarted", "diverged"], rows)


def augmentation_cost() -> str:
    table = pd.read_csv(RESULTS / "augmentation_cost" / "cpu.csv")
    table = table[table["what"] != "plain step"]
    rows = []
    for what, group in table.groupby("what", sort=False):
        by_threads = group.set_index("threads")
        cells = [
            f"{row['percent_of_step']:.2f} ({row['quartile_1']:.2f} to {row['quartile_3']:.2f})"
            for _, row in by_threads.iterrows()
        ]
        rows.append([str(what), *cells])
    threads = [f"% of a step, {count} thread(s) (quartiles)" for count in table["threads"].unique()]
    return markdown(["augmentation", *threads], rows)


def step_cost_short() -> str:
    table = pd.read_csv(RESULTS / "step_cost" / "cpu.csv")
    table = table[(table["response"] == "auto") & (table["step"] != "hyper-step")]
    rows = []
    for (step, share), group in table.groupby(["step", "share"], sort=False):
        part = "" if share == 1 else f", response step on {share:g} of the batch"
        for threads, one in group.groupby("threads"):
            ratios = one.set_index("model")["over_plain"]
            rows.append([f"{step}{part}", str(threads), *(f"{ratios[name]:.2f}" for name in NETWORKS)])
    return markdown(["", "threads", *NETWORKS.values()], rows)


def rules_summary() -> str:
    """What `auto` does beside the plain network and random search, as `rules_tables.py` wrote it."""
    return (RESULTS / "rules" / "summary.md").read_text().rstrip()


TABLES: Mapping[str, Callable[[], str]] = {
    "rules": rules_summary,
    "all-methods": all_methods,
    **{f"all-methods {task}": partial(all_methods_long, task) for task in COMPARED},
    "speed-up": speed_up,
    "population": population,
    "search-around-optuna": search_around_optuna,
    "ptb-tuning": ptb_tuning,
    "ptb-schedule": ptb_schedule,
    "cifar10-tuning": cifar10_tuning,
    "delta-stn": delta_stn,
    **{f"delta-stn {name}": partial(vision, RESULTS / "delta_stn" / f"{name}-cpu") for name in VISION},
    "regularisation-gain": regularisation_gain,
    "replay": replay,
    "start-convergence": start_convergence,
    "start-values": start_values,
    "response-size": response_size,
    "step-cost": step_cost,
    "step-cost-short": step_cost_short,
    "vision-steps": vision_steps,
    "vision-epochs": vision_epochs,
    "lstm-cost": lstm_cost,
    "augmentation-cost": augmentation_cost,
    "faults": faults,
    "tune-overhead": tune_overhead,
    "export-scale": export_scale,
}
"""The mark of a table in a page -> what makes it."""
