"""Every method of the project on one task, at equal cost: what it finds, and how much earlier STN finds it.

On `digits-mlp` ten seeds, on `fashion-mnist-cnn` three. Each method may spend the same; each tries the task's start
values first. The speed-up at equal quality is what the best baseline spends on its best value, over what STN has spent
when it first reaches that value; both ways of counting are given: the baseline's whole budget, and only what it had
spent when it found its best. Writes frames, plots and tables to experiments/results/all_methods.

    python experiments/all_methods.py --task digits-mlp          # an hour on 2 cores
    python experiments/all_methods.py --task fashion-mnist-cnn   # two hours on 2 cores
    python experiments/all_methods.py --task fashion-mnist-cnn --size full --gpus-per-trial 0.25
    python experiments/all_methods.py --task digits-mlp --smoke-test

Goes on where it was cut off: finished runs are never run twice. `--methods` does some of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tune_stn.methods import METHODS
from tune_stn.study.compare import compare
from tune_stn.study.plots import write_plots
from tune_stn.study.results import export_results
from tune_stn.study.speed_up import speed_up
from tune_stn.study.statistics import differences_to_best
from tune_stn.study.summary import format_summary, summary
from tune_stn.tuning.cluster import Cluster

# What each run may spend (plain-epoch equivalents), seeds, and settings of the task. A budget is six to seven
# self-tuning runs: 25 and 7 full trials of a baseline.
SIZES: dict[str, dict[str, tuple[float, int, dict[str, Any]]]] = {
    "digits-mlp": {
        "cpu": (1000, 10, {}),
        "smoke": (12, 2, {"epochs": 3, "warmup_epochs": 1}),
    },
    "fashion-mnist-cnn": {
        # Batches of 64, so that 2,500 images give as many steps in 30 epochs as the 5,000 of other experiments here.
        "cpu": (
            200,
            3,
            {"train_images": 2500, "valid_images": 2500, "test_images": 1000, "batch_size": 64, "epochs": 30},
        ),
        "full": (2000, 5, {"train_images": 50_000, "valid_images": 10_000, "test_images": 10_000, "epochs": 100}),
        "smoke": (
            9,
            2,
            {"train_images": 128, "valid_images": 128, "test_images": 128, "epochs": 2, "warmup_epochs": 1},
        ),
    },
}
SELF_TUNING = ("stn", "delta-stn", "stn-population")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=SIZES, default="digits-mlp")
    parser.add_argument("--size", choices=("cpu", "full"), default="cpu")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: all")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/all_methods"))
    parser.add_argument("--gpus-per-trial", type=float, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "all_methods")
    arguments = parser.parse_args()
    size = "smoke" if arguments.smoke_test else arguments.size
    if size not in SIZES[arguments.task]:
        parser.error(f"--size {size}: {arguments.task} has {', '.join(SIZES[arguments.task])}")
    budget, seeds, settings = SIZES[arguments.task][size]

    results = compare(
        arguments.task,
        arguments.methods.split(","),
        budget=budget,
        seeds=arguments.seeds or seeds,
        out=arguments.out / arguments.task,
        resume=True,
        settings=settings,
        cluster=Cluster(gpus_per_trial=arguments.gpus_per_trial),
        say=print,
    )

    folder = arguments.results / arguments.task
    export_results(results, folder, "parquet")
    write_plots(results, folder / "plots")
    speed_ups = speed_up(results.incumbent, results.reports, SELF_TUNING)
    speed_ups.to_csv(folder / "speed_up.csv", index=False)
    differences_to_best(results.incumbent).to_csv(folder / "differences.csv", index=False)
    table = f"{format_summary(summary(results))}\n\n{speed_ups.to_string(index=False)}"
    (folder / "table.txt").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
