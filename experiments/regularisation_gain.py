"""What self-tuning gains over no regularisation, on a small CNN with few images.

Fashion-MNIST, 5,000 training and 5,000 validation images, 100 epochs, three seeds: STN and Delta-STN, started where the
task says, against the same network, data and initial weights with every hyperparameter at zero. Prints the best
validation loss of each and the ratio, seed by seed; results go to experiments/results/regularisation_gain.

    python experiments/regularisation_gain.py              # the figures of the results page; 50 minutes on 2 cores
    python experiments/regularisation_gain.py --smoke-test # the same in a minute, for tests
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pages import RESULTS, markdown

from tune_stn.methods import get_method
from tune_stn.study.compare import run_study
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.results import export_results, load_results
from tune_stn.study.statistics import mean_interval
from tune_stn.study.summary import with_interval
from tune_stn.tasks import get_task
from tune_stn.tuning.cluster import Cluster

# The split at which regularisation matters and a CPU run is short. The test set is halved for the same reason.
CPU = {"train_images": 5000, "valid_images": 5000, "test_images": 5000, "epochs": 100}
FULL = {"train_images": 50_000, "valid_images": 10_000, "test_images": 10_000, "epochs": 100}
SMOKE = {"train_images": 128, "valid_images": 64, "test_images": 64, "epochs": 2, "warmup_epochs": 1, "train_steps": 1}
# A cutout without holes erases nothing, whatever its length.
NOTHING = {
    "dropout_0": 0.0,
    "dropout_1": 0.0,
    "dropout_2": 0.0,
    "dropout_fc": 0.0,
    "cutout_length": 2,
    "cutout_holes": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--size", choices=("cpu", "full"), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="fixed,stn,delta-stn", help="some of these; finished ones are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/regularisation_gain"))
    parser.add_argument("--gpus-per-trial", type=float, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "regularisation_gain")
    arguments = parser.parse_args()
    settings = SMOKE if arguments.smoke_test else CPU if arguments.size == "cpu" else FULL

    best = {}
    for name in arguments.methods.split(","):
        task = get_task("fashion-mnist-cnn", **settings)
        if name == "fixed":
            task = replace(task, start=NOTHING)
        results = run_study(
            task,
            [get_method(name)],
            seeds=range(arguments.seeds),
            budget=math.inf,
            trials=1,
            out=arguments.out / name,
            resume=True,
            settings={},
            cluster=Cluster(gpus_per_trial=arguments.gpus_per_trial),
            say=print,
        )
        export_results(results, arguments.results / name, "parquet")
        best[name] = last_of_each_run(results.incumbent).set_index("seed")["best_val_loss"]

    if "fixed" in best:
        for name, losses in best.items():
            ratios = losses / best["fixed"]
            each = "  ".join(f"{loss:.4f} ({ratio:.3f})" for loss, ratio in zip(losses, ratios, strict=True))
            print(
                f"{name:10} best validation loss (over unregularised) by seed: {each}  mean ratio {ratios.mean():.3f}"
            )


def page_table() -> str:
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


TABLES: Mapping[str, Callable[[], str]] = {"regularisation-gain": page_table}


if __name__ == "__main__":
    main()
