"""The tables and pictures of README.md and results/README.md, from the committed result files.

python experiments/readme.py           # rewrites the marked parts of both pages, and results/figures/*.png
python experiments/readme.py --check   # exit code 1 if a page does not say what the results say
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.plots import plot_best_so_far, plot_schedules
from tune_stn.study.results import load_results
from tune_stn.study.statistics import differences_to_best, mean_interval
from tune_stn.study.summary import summary, with_interval

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "mlp": "MLP, 1200 wide",
    "cnn": "CNN",
    "lstm-small": "LSTM 35x20x200",
    "lstm-large": "LSTM 70x40x650",
    "transformer": "transformer block",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for path, tables in PAGES.items():
        before = after = path.read_text()
        for name, table in tables.items():
            after = replace_marked(after, name, table())
        if not arguments.check:
            path.write_text(after)
        elif after != before:
            sys.exit(f"{path.relative_to(ROOT)} is not what the results say: run python experiments/readme.py")
    if arguments.check:
        return
    figures = RESULTS / "figures"
    figures.mkdir(exist_ok=True)
    plot_best_so_far(load_results(RESULTS / "equal_cost")).savefig(figures / "equal_cost.png", dpi=110)
    plot_schedules(load_results(RESULTS / "regularisation_gain" / "stn")).savefig(figures / "schedule.png", dpi=90)


def equal_cost() -> str:
    results = load_results(RESULTS / "equal_cost")
    frame = summary(results)
    differences = differences_to_best(results.incumbent).set_index("method")
    rows = []
    for row in frame.to_dict("records"):
        cells = [row["method"], str(row["seeds"])]
        for column in ("best_val_loss", "test_loss_at_best"):
            cells.append(with_interval(row[column], row[f"{column}_low"], row[f"{column}_high"]))
        cells += [f"{row[column]:.0f}" for column in ("cost", "wall_time_s", "device_time_s")]
        if row["method"] in differences.index and differences.loc[row["method"], "n"] > 0:
            d = differences.loc[row["method"]]
            cells.append(f"{d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]")
        else:
            cells.append("")
        rows.append(cells)
    header = ["method", "seeds", "best val. loss [95 %]", "its test loss [95 %]", "cost", "wall s", "device s"]
    return markdown([*header, "worse than the best, paired [95 %]"], rows)


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


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def replace_marked(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"no page has the marks {begin} ... {end}")
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL)


PAGES = {
    ROOT / "README.md": {
        "equal-cost": equal_cost,
        "replay": replay,
        "regularisation-gain": regularisation_gain,
        "step-cost-short": step_cost_short,
    },
    RESULTS / "README.md": {
        "start-convergence": start_convergence,
        "step-cost": step_cost,
        "response-size": response_size,
        "start-values": start_values,
        "augmentation-cost": augmentation_cost,
    },
}

if __name__ == "__main__":
    main()
