"""Learning rate and width tuned from outside, regularisation inside: STNSearch around Optuna, against Optuna alone.

On the digits (MLP): Optuna's TPE proposes learning rate and width, STN tunes the five regularisation hyperparameters
within each trial; against TPE that proposes all seven for plain trials. One trial after the other, as under Tune with
one slot, each side from the task's own values and with the same cost. A wider network's epoch costs more, so cost is
counted here in epochs of the plain network of the task's own width.

Each run is written to --out when it ends, and a run that is there is not run again. To experiments/results/
search_around_optuna go best_so_far.csv, trials.csv (one row each), summary.csv (means and, paired by seed, differences
at a quarter, half and all of the budget), speed_up.csv, best_so_far.png and study.json.

    python experiments/search_around_optuna.py              # the committed figures; about 15 minutes on 2 cores
    python experiments/search_around_optuna.py --smoke-test
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from pages import RESULTS, markdown
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_stn.study.incumbent import best_so_far, value_at
from tune_stn.study.plots import plot_best_so_far
from tune_stn.study.results import Results
from tune_stn.study.speed_up import speed_up
from tune_stn.study.statistics import mean_interval, paired_difference
from tune_stn.study.summary import with_interval
from tune_stn.tasks import get_task
from tune_stn.training import Trainer
from tune_stn.tuning.search import STNSearch

TASK = "digits-mlp"
OUTSIDE = {"lr": tune.loguniform(3e-3, 3e-1), "hidden": tune.lograndint(32, 257)}
OWN = {"lr": 0.03, "hidden": 128}  # the task's own
METRIC, MODE = "best_val_loss", "min"
# side -> algorithm of its trials, and what an epoch of one costs about: of its budget's trials, a third, and ten at
# most, are TPE's random ones (ten is its default, and would leave a small budget no trial to model).
SIDES = {"stn inside tpe": ("stn", 2.6), "tpe": ("fixed", 1.0)}
MOST_RANDOM_TRIALS = 10
BUDGET = 3000.0  # twenty STN trials or fifty plain ones of the task's own width
SMOKE = {"epochs": 2, "warmup_epochs": 1, "train_images": 100}
SMOKE_BUDGET = 12.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=float, help=f"of each run, in plain epochs; default {BUDGET:g}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/search_around_optuna"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "search_around_optuna")
    arguments = parser.parse_args()
    settings: dict[str, Any] = SMOKE if arguments.smoke_test else {}
    budget = arguments.budget or (SMOKE_BUDGET if arguments.smoke_test else BUDGET)
    out = arguments.out / ("smoke" if arguments.smoke_test else "full") / f"budget-{budget:g}"
    out.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)

    # Both sides at a seed before the next seed: what is there so far is paired.
    files = {(side, seed): out / f"{side}-seed{seed}.csv" for seed in range(arguments.seeds) for side in SIDES}
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        wanted = {pool.submit(run, *key, budget, settings): key for key, file in files.items() if not file.exists()}
        for future in as_completed(wanted):
            reports = future.result()
            partial = files[wanted[future]].with_suffix(".partial")
            reports.to_csv(partial, index=False)
            os.replace(partial, files[wanted[future]])
            last = reports.iloc[-1]
            print(f"{last['method']}, seed {last['seed']}: {last['trial_id'] + 1} trials", flush=True)

    reports = pd.concat([pd.read_csv(file) for file in files.values()], ignore_index=True)
    write(reports, budget, arguments.results)


def run(side: str, seed: int, budget: float, settings: dict[str, Any]) -> pd.DataFrame:
    """All reports of one side at a seed, trial after trial until the budget is spent."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    algorithm, _ = SIDES[side]
    search = searcher(side, seed, budget, settings)
    reference = Trainer(get_task(TASK, **settings), seed=seed)
    splits, epoch_flops = reference.splits, reference.meter.epoch_flops
    rows: list[dict[str, Any]] = []
    spent = 0.0
    while spent < budget:
        trial = rows[-1]["trial_id"] + 1 if rows else 0
        config = search.suggest(str(trial))
        outside = {name: config[name] for name in OUTSIDE}
        task = get_task(TASK, **settings, **outside)
        trainer = Trainer(task, algorithm=algorithm, hp=config["hp"], seed=seed, splits=splits)
        for report in train(trainer):
            rows.append(
                {"task": TASK, "method": side, "seed": seed, "trial_id": trial, "report_index": report["epoch"] - 1}
                | {"cost_total": spent + trainer.meter.spent_flops / epoch_flops}
                | {"wall_time_s": time.perf_counter() - began, **outside, **report}
            )
            best = min(row["val_loss"] for row in rows if row["trial_id"] == trial)
            report |= {METRIC: best, "training_iteration": report["epoch"]}
            search.on_trial_result(str(trial), report)
            if rows[-1]["cost_total"] >= budget:
                break
        spent = rows[-1]["cost_total"]
        search.on_trial_complete(str(trial), report)
    return pd.DataFrame(rows)


def searcher(side: str, seed: int, budget: float, settings: dict[str, Any]) -> Searcher:
    """What proposes a side's trials, told what it searches as Tune does it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task = get_task(TASK, **settings)
    algorithm, cost = SIDES[side]
    trials = int(budget / (cost * task.training.epochs))
    tpe = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(MOST_RANDOM_TRIALS, max(2, trials // 3)))
    inside = {f"hp/{name}": value for name, value in task.start.items()} if algorithm == "fixed" else {}
    search: Searcher = OptunaSearch(sampler=tpe, points_to_evaluate=[OWN | inside])
    if algorithm == "stn":
        search = STNSearch(search, seed=seed)
    search.set_search_properties(METRIC, MODE, {"task": TASK, **settings, **OUTSIDE, "hp": task.space.to_tune()})
    return search


def train(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """The reports of a trial, epoch by epoch."""
    while trainer.epoch < trainer.task.training.epochs and not trainer.diverged:
        yield trainer.run_epoch() | {"status": "diverged" if trainer.diverged else "running"}


def write(reports: pd.DataFrame, budget: float, folder: Path) -> None:
    """Tables and plot of all runs."""
    incumbent = best_so_far(reports)
    incumbent.to_csv(folder / "best_so_far.csv", index=False)
    trials(reports).to_csv(folder / "trials.csv", index=False)
    summary = summarise(incumbent, budget)
    summary.to_csv(folder / "summary.csv", index=False)
    print(summary.to_string(index=False, float_format="%.4f"))
    faster = speed_up(incumbent, reports, ["stn inside tpe"])
    faster.to_csv(folder / "speed_up.csv", index=False)
    print(faster.to_string(index=False, float_format="%.4g"))
    study = {
        "task": TASK,
        "methods": list(SIDES),
        "seeds": sorted(int(seed) for seed in reports["seed"].unique()),
        "budget": budget,
        "missing": [],
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {name: metadata.version(name) for name in ("tune_stn", "torch", "ray", "optuna", "numpy")},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
    }
    (folder / "study.json").write_text(json.dumps(study, indent=1) + "\n")
    results = Results(folder, study, reports, pd.DataFrame(), incumbent)
    plot_best_so_far(results).savefig(folder / "best_so_far.png", dpi=120)


def trials(reports: pd.DataFrame) -> pd.DataFrame:
    """A row for each trial: what it was given outside, its best losses, where it ended, what it cost."""
    finite = reports[np.isfinite(reports["val_loss"])]
    keys = ["method", "seed", "trial_id"]
    best = finite.loc[finite.groupby(keys)["val_loss"].idxmin()].set_index(keys)[["val_loss", "test_loss", "epoch"]]
    last = reports.groupby(keys).tail(1).set_index(keys)
    hp = [name for name in reports if name.startswith("hp/")]
    columns = [*OUTSIDE, *hp, "epoch", "cost_total", "wall_time_s", "status"]
    return (
        last[columns]
        .rename(columns={"epoch": "epochs"})
        .join(best.rename(columns={"epoch": "best_epoch"}))
        .reset_index()
    )


def summarise(incumbent: pd.DataFrame, budget: float) -> pd.DataFrame:
    """Mean best-so-far of each side and the paired difference of the first to the second, at shares of the budget."""
    ours, theirs = SIDES
    rows = []
    for share in (0.25, 0.5, 1.0):
        for column in ("best_val_loss", "test_loss_at_best"):
            at = {
                side: [value_at(run, [share * budget], column)[0] for _, run in runs.groupby("seed")]
                for side, runs in incumbent.groupby("method")
            }
            row = {"cost": share * budget, "what": column, "seeds": len(at[ours])}
            for side in SIDES:
                mean = mean_interval(at[side])
                row |= {side: mean.mean, f"{side} low": mean.low, f"{side} high": mean.high}
            difference = paired_difference(at[ours], at[theirs])
            row |= {"difference": difference.mean, "low": difference.low, "high": difference.high}
            rows.append(row | {"p_value": difference.p_value})
    return pd.DataFrame(rows)


def page_table() -> str:
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


TABLES: Mapping[str, Callable[[], str]] = {"search-around-optuna": page_table}


if __name__ == "__main__":
    main()
