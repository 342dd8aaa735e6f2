"""What scripts that compare methods share: a command line over studies, which go on where they were cut off.

A script names its methods and its studies, by task and size, and calls `main`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pages import RESULTS

from tune_stn.methods import Method, get_method
from tune_stn.study.compare import run_study
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.plots import plot_best_so_far, plot_schedules
from tune_stn.study.results import Results
from tune_stn.study.statistics import differences_to_best
from tune_stn.tuning.cluster import Cluster

SIZES = ("cpu", "full")


@dataclass(frozen=True)
class Study:
    """A task at a size.

    Attributes:
        budget: What each run may spend, in plain epochs; infinite for one trial of each method, to its end.
        seeds: The seeds.
        settings: Settings of the task.
        shared_with: Script that has the same study, and keeps its runs. Default none.
    """

    budget: float
    seeds: Sequence[int]
    settings: Mapping[str, Any]
    shared_with: str = ""


def main(
    script: str,
    description: str | None,
    methods: Sequence[str] | Mapping[str, Method],
    studies: Mapping[str, Mapping[str, Study]],
    write: Callable[[Results, Path], None],
    *,
    tasks: Sequence[str] = (),
    with_data: Sequence[str] = (),
) -> None:
    """Run the studies that the command line names, each in a folder of its own, and write their results.

    Args:
        script: File of the script.
        description: Its docstring, which `--help` shows.
        methods: Names of the methods, or name -> method.
        studies: Task -> size, "cpu", "full" or "smoke" -> study.
        write: Function of a study's results and a folder, which writes to it what the pages are made of.
        tasks: Tasks that are run where none is named. Default all.
        with_data: Tasks whose images or texts are in the folder `--data-dir`. Default none.
    """
    name = Path(script).stem
    named = methods if isinstance(methods, Mapping) else {method: get_method(method) for method in methods}
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=[*studies], default=[*(tasks or studies)])
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--methods", default=",".join(named), help="default: all of the script")
    parser.add_argument("--one-trial", action="store_true", help="one trial of each method, to its end")
    parser.add_argument("--seeds", type=int, help="how many of the script's")
    parser.add_argument("--gpus-per-trial", type=float, default=0)
    parser.add_argument("--data-dir", help=f"folder of the data of {', '.join(with_data) or 'no task here'}")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS / name)
    arguments = parser.parse_args()
    size = "smoke" if arguments.smoke_test else arguments.size
    for task in arguments.task:
        if size not in studies[task]:
            parser.error(f"--size {size}: {task} has {', '.join(studies[task])}")
    for task in arguments.task:
        study = studies[task][size]
        budget = math.inf if arguments.one_trial else study.budget
        folder = f"{task}-{size}{'-one' if arguments.one_trial else ''}"
        data = {"data_dir": arguments.data_dir} if arguments.data_dir and task in with_data else {}
        print(f"\n{folder}")
        results = run_study(
            task,
            [named.get(method) or get_method(method) for method in arguments.methods.split(",")],
            budget=budget,
            seeds=list(study.seeds[: arguments.seeds]),
            trials=1 if math.isinf(budget) else None,
            out=arguments.out / (study.shared_with or name) / folder,
            resume=True,
            settings={**study.settings, **data},
            cluster=Cluster(gpus_per_trial=arguments.gpus_per_trial),
            say=print,
        )
        write(without_folders(results), arguments.results / folder)


def without_folders(results: Results) -> Results:
    """The results whose description names no folder of this machine."""
    settings = {name: value for name, value in results.study["settings"].items() if name != "data_dir"}
    command = ("FOLDER" if Path(word).is_absolute() else word for word in results.study["command"].split())
    return replace(results, study={**results.study, "settings": settings, "command": " ".join(command)})


def write_table(results: Results, table: pd.DataFrame, folder: Path) -> None:
    """A table of methods, their differences to the best, best-so-far and the schedules of STN's best trials."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "table.csv", index=False)
    differences_to_best(results.incumbent).to_csv(folder / "differences.csv", index=False)
    results.incumbent.to_parquet(folder / "incumbent.parquet", index=False, compression="zstd")
    (folder / "study.json").write_text(json.dumps(results.study, indent=1) + "\n")
    plot_best_so_far(results, "cost_total").savefig(folder / "best_so_far.png", dpi=110)
    if "stn" in set(results.incumbent["method"]):
        best = best_of(results, "stn")
        best.schedule.to_parquet(folder / "schedules.parquet", index=False, compression="zstd")
        plot_schedules(best).savefig(folder / "schedules.png", dpi=90)
    print(table.to_string(index=False, float_format="%.3f"))


def best_of(results: Results, method: str) -> Results:
    """Only the trials in which a method found its best, one for each seed."""
    final = last_of_each_run(results.incumbent)
    best = final.loc[final["method"] == method, ["method", "seed", "trial_id"]]
    return replace(
        results,
        reports=results.reports.merge(best),
        schedule=results.schedule.merge(best),
        incumbent=results.incumbent.merge(best),
    )
