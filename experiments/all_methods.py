"""Every method of the project on one task, at equal cost: what it finds, and how much earlier STN finds it.

On `digits-mlp` ten seeds, on `fashion-mnist-cnn` three. Each method may spend the same; each tries the task's start
values first. The speed-up at equal quality is what the best baseline spends on its best value, over what STN has spent
when it first reaches that value; both ways of counting are given: the baseline's whole budget, and only what it had
spent when it found its best. Tables and plots go to experiments/results/all_methods.

    python experiments/all_methods.py --task digits-mlp          # an hour on 2 cores
    python experiments/all_methods.py --task fashion-mnist-cnn   # two hours on 2 cores
    python experiments/all_methods.py --task fashion-mnist-cnn --size full --gpus-per-trial 0.25
    python experiments/all_methods.py --task digits-mlp --smoke-test

Goes on where it was cut off: finished runs are never run twice. `--methods` does some of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from comparison import Study, main
from pages import RESULTS, markdown

from tune_stn.methods import METHODS
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.plots import plot_best_so_far
from tune_stn.study.results import Results
from tune_stn.study.speed_up import speed_up
from tune_stn.study.statistics import differences_to_best, paired_difference
from tune_stn.study.summary import format_summary, summary, with_interval

# A budget is twelve and five self-tuning runs: 16 and 7 full trials of a baseline.
TINY = {"train_images": 128, "valid_images": 128, "test_images": 128, "epochs": 2, "warmup_epochs": 1, "train_steps": 1}
# Batches of 64, so that 2,500 images give as many steps in 30 epochs as the 5,000 of other experiments here.
SMALL = {"train_images": 2500, "valid_images": 2500, "test_images": 1000, "batch_size": 64, "epochs": 30}
FULL = {"train_images": 50_000, "valid_images": 10_000, "test_images": 10_000, "epochs": 100}
STUDIES = {
    "digits-mlp": {
        "cpu": Study(960, range(10), {}),
        "smoke": Study(5, range(2), {"epochs": 3, "warmup_epochs": 1}),
    },
    "fashion-mnist-cnn": {
        "cpu": Study(200, range(3), SMALL),
        "full": Study(2000, range(5), FULL),
        "smoke": Study(9, range(2), TINY),
    },
}
SHOWN = ("digits-mlp",)  # on the page; the other one's results were older than `auto`
SPENT = (79, 160, 320, 480, 960)  # the first is a run of `auto`
SELF_TUNING = ("auto", "stn", "delta-stn", "stn-population")


def write(results: Results, folder: Path) -> None:
    """What the figures and tables of the pages are made of; the study itself, every report of it, is in --out."""
    folder.mkdir(parents=True, exist_ok=True)
    results.incumbent.to_parquet(folder / "incumbent.parquet", index=False, compression="zstd")
    summary(results).to_csv(folder / "summary.csv", index=False)
    differences_to_best(results.incumbent).to_csv(folder / "differences.csv", index=False)
    speed_ups = speed_up(results.incumbent, results.reports, SELF_TUNING)
    speed_ups.to_csv(folder / "speed_up.csv", index=False)
    restarts = against_restarts(results)
    restarts.to_csv(folder / "population.csv", index=False)
    (folder / "study.json").write_text(json.dumps(results.study, indent=1))
    for axis in ("cost_total", "wall_time_s"):
        plot_best_so_far(results, axis).savefig(folder / f"best_so_far_{axis}.png", dpi=110)
    print(
        format_summary(summary(results)), speed_ups.to_string(index=False), restarts.to_string(index=False), sep="\n\n"
    )


def against_restarts(results: Results) -> pd.DataFrame:
    """The population of self-tuning trials minus independent ones (`stn`), paired by seed, at equal cost."""
    final = last_of_each_run(results.incumbent)
    if not {"stn", "stn-population"} <= set(final["method"]):
        return pd.DataFrame()
    rows = []
    for column in ("best_val_loss", "test_loss_at_best"):
        pairs = final.pivot(index="seed", columns="method", values=column)[["stn-population", "stn"]].dropna()
        difference = paired_difference(pairs["stn-population"], pairs["stn"])
        rows.append({"column": column, **pairs.mean(), **vars(difference)})
    return pd.DataFrame(rows)


def long_table(task: str) -> str:
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
    folder = RESULTS / "all_methods" / f"{task}-cpu"
    table = pd.read_csv(folder / "summary.csv", index_col="method")
    return table.join(pd.read_csv(folder / "differences.csv", index_col="method")[["mean", "low", "high", "p_value"]])


def spent_table(task: str) -> str:
    """The mean of the best validation loss that each method has when it has spent so much."""
    incumbent = pd.read_parquet(RESULTS / "all_methods" / f"{task}-cpu" / "incumbent.parquet")
    columns = {}
    for cost in SPENT:
        spent = incumbent[incumbent["cost_total"] <= cost]
        columns[str(cost)] = spent.groupby(["method", "seed"])["best_val_loss"].min().groupby("method").mean()
    table = pd.DataFrame(columns).sort_values(str(SPENT[0]))
    rows = [
        [str(method), *("" if pd.isna(loss) else f"{loss:.3f}" for loss in row)] for method, row in table.iterrows()
    ]
    return markdown(["best val. loss after a cost of", *columns], rows)


def speed_up_table() -> str:
    rows = []
    for task in SHOWN:
        for row in pd.read_csv(RESULTS / "all_methods" / f"{task}-cpu" / "speed_up.csv").to_dict("records"):
            reached = f"{row['reached']} of {row['n']}"
            ratios = [f"{row[name]:.1f}" for name in ("median", "median_until_found")]
            means = "never" if pd.isna(row["of_means"]) else f"{row['of_means']:.1f}"
            rows.append([task, row["method"], row["baseline"], reached, *ratios, means])
    header = ["task", "method", "best baseline", "seeds at which it is reached", "median speed-up"]
    return markdown([*header, "counting what it spent until it found its best", "of the mean curves"], rows)


def population_table() -> str:
    rows = []
    for task in SHOWN:
        for row in pd.read_csv(RESULTS / "all_methods" / f"{task}-cpu" / "population.csv").to_dict("records"):
            what = {"best_val_loss": "best val. loss", "test_loss_at_best": "its test loss"}[row["column"]]
            cells = [task, what, f"{row['stn-population']:.4f}", f"{row['stn']:.4f}"]
            difference = f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], p = {row['p_value']:.3f}"
            rows.append([*cells, difference])
    return markdown(["task", "", "population", "restarts", "population minus restarts, paired [95 %]"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    **{f"all-methods {task}": partial(long_table, task) for task in SHOWN},
    **{f"best-so-far {task}": partial(spent_table, task) for task in SHOWN},
    "speed-up": speed_up_table,
    "population": population_table,
}


if __name__ == "__main__":
    main(__file__, __doc__, METHODS, STUDIES, write)
