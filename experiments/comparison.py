"""What the scripts of the papers' tables share: a study that goes on where it was cut off, and what is kept of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tune_stn.methods import get_method
from tune_stn.study.compare import compare, run_study
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.plots import plot_best_so_far, plot_schedules
from tune_stn.study.results import Results
from tune_stn.study.statistics import differences_to_best
from tune_stn.tuning.cluster import Cluster


def run(
    task: str,
    methods: list[str],
    *,
    budget: float,
    seeds: list[int],
    settings: dict[str, Any],
    gpus_per_trial: float,
    out: Path,
) -> Results:
    """Every method at equal cost; an infinite budget is for one trial of each method."""
    cluster = Cluster(gpus_per_trial=gpus_per_trial)
    common: dict[str, Any] = {"out": out, "resume": True, "settings": settings, "cluster": cluster, "say": print}
    if math.isinf(budget):
        chosen = [get_method(method) for method in methods]
        return run_study(task, chosen, seeds=seeds, budget=budget, trials=1, **common)
    return compare(task, methods, budget=budget, seeds=seeds, **common)


def write(results: Results, table: pd.DataFrame, folder: Path) -> None:
    """What the pages are made of; the study itself, every report of it, is in --out."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "table.csv", index=False)
    differences_to_best(results.incumbent).to_csv(folder / "differences.csv", index=False)
    results.incumbent.to_parquet(folder / "incumbent.parquet", index=False, compression="zstd")
    results.study["settings"].pop("data_dir", None)  # folders of this machine, here and in the command
    words = results.study["command"].split()
    results.study["command"] = " ".join("FOLDER" if Path(word).is_absolute() else word for word in words)
    (folder / "study.json").write_text(json.dumps(results.study, indent=1) + "\n")
    plot_best_so_far(results, "cost_total").savefig(folder / "best_so_far.png", dpi=110)
    if "stn" in set(results.incumbent["method"]):
        best = best_of_stn(results)
        best.schedule.to_parquet(folder / "schedules.parquet", index=False, compression="zstd")
        plot_schedules(best).savefig(folder / "schedules.png", dpi=90)
    print(table.to_string(index=False, float_format="%.3f"))


def best_of_stn(results: Results) -> Results:
    """Only the trials in which STN found its best, one for each seed."""
    final = last_of_each_run(results.incumbent)
    best = final.loc[final["method"] == "stn", ["method", "seed", "trial_id"]]
    return replace(
        results,
        reports=results.reports.merge(best),
        schedule=results.schedule.merge(best),
        incumbent=results.incumbent.merge(best),
    )
