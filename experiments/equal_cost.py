"""One self-tuning run against baselines that may each spend five times as much.

Fashion-MNIST CNN with 5,000 training images, six hyperparameters, three seeds. One STN trial; then random search,
Bayesian optimisation, HyperBand and PBT, each with five times the cost of that trial. All start from the same values,
weights and data. Writes table, plot and frames to experiments/results/equal_cost.

    python experiments/equal_cost.py              # the figures of the README; about an hour on 2 cores
    python experiments/equal_cost.py --smoke-test # the same in two minutes, for tests
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd

from tune_stn.methods import get_method
from tune_stn.study.compare import compare, run_study
from tune_stn.study.plots import write_plots
from tune_stn.study.results import Results, export_results
from tune_stn.study.summary import format_summary, summary
from tune_stn.tuning.cluster import Cluster

# 30 epochs, not 100: the baselines' budget is 170 epochs a seed and method even so.
CPU = {"train_images": 5000, "valid_images": 5000, "test_images": 2500, "epochs": 30}
FULL = {"train_images": 50_000, "valid_images": 10_000, "test_images": 10_000, "epochs": 100}
SMOKE = {"train_images": 256, "valid_images": 256, "test_images": 256, "epochs": 3, "warmup_epochs": 1}
BASELINES = ("random", "gp-bo", "hyperband", "pbt")
TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--size", choices=("cpu", "full"), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/equal_cost"))
    parser.add_argument("--gpus-per-trial", type=float, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "equal_cost")
    arguments = parser.parse_args()
    settings = SMOKE if arguments.smoke_test else CPU if arguments.size == "cpu" else FULL
    cluster = Cluster(gpus_per_trial=arguments.gpus_per_trial)

    stn = run_study(
        "fashion-mnist-cnn",
        [get_method("stn")],
        seeds=range(arguments.seeds),
        budget=math.inf,
        trials=1,
        out=arguments.out / "stn",
        resume=True,
        settings=settings,
        cluster=cluster,
        say=print,
    )
    budget = TIMES * math.ceil(stn.reports["cost_total"].max())
    baselines = compare(
        "fashion-mnist-cnn",
        BASELINES,
        budget=budget,
        seeds=arguments.seeds,
        out=arguments.out / "baselines",
        resume=True,
        settings=settings,
        cluster=cluster,
        say=print,
    )

    together = Results(
        arguments.results,
        {
            **baselines.study,
            "methods": ["stn", *BASELINES],
            "missing": stn.study["missing"] + baselines.study["missing"],
        },
        pd.concat([stn.reports, baselines.reports], ignore_index=True),
        pd.concat([stn.schedule, baselines.schedule], ignore_index=True),
        pd.concat([stn.incumbent, baselines.incumbent], ignore_index=True),
    )
    export_results(together, arguments.results, "parquet")
    write_plots(together, arguments.results / "plots")
    table = format_summary(summary(together))
    (arguments.results / "table.txt").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
