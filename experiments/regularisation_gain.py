"""What regularisation and its schedule gain on a small CNN with few images: the schedules in the README's picture.

Fashion-MNIST, 1,280 training images, 50 epochs, five seeds, one trial of each method: the network without
regularisation, at the task's start values, and tuned by `auto` and STN; the same data and initial weights at a seed.
Frames of the study go to experiments/results/regularisation_gain.

    python experiments/regularisation_gain.py              # twelve minutes on 2 cores
    python experiments/regularisation_gain.py --smoke-test # the same in a minute, for tests
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from comparison import Study, main
from pages import RESULTS, markdown
from ray.tune.search import BasicVariantGenerator
from rules import SETTINGS

from tune_stn.methods import Context, Method, Plan, get_method
from tune_stn.methods.method import tune_values
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.results import Results, export_results, load_results
from tune_stn.study.statistics import mean_interval
from tune_stn.study.summary import with_interval

# A cutout without holes erases nothing, whatever its length.
NOTHING = {
    "dropout_0": 0.0,
    "dropout_1": 0.0,
    "dropout_2": 0.0,
    "dropout_fc": 0.0,
    "cutout_length": 2,
    "cutout_holes": 0,
}
SMOKE = {"train_images": 128, "valid_images": 64, "test_images": 64, "epochs": 2, "warmup_epochs": 1, "train_steps": 1}


def without(context: Context) -> Plan:
    space = context.task.space
    return Plan(search_alg=BasicVariantGenerator(), samples=1, hp=tune_values(space, space.check_values(NOTHING)))


METHODS = {
    "none": Method("none", "no regularisation, one plain trial", "fixed", without),
    "fixed": get_method("fixed"),
    "auto": get_method("auto"),
    "stn": get_method("stn"),
}
TASK, CNN = "fashion-mnist-cnn", SETTINGS["cnn"]
STUDIES = {
    "cpu": Study(math.inf, range(5), {**CNN.settings, "lr": CNN.lr}),
    "full": Study(math.inf, range(5), {"train_images": 50_000, "valid_images": 10_000, "epochs": 100}),
    "smoke": Study(math.inf, range(1), SMOKE),
}


def write(results: Results, folder: Path) -> None:
    export_results(results, folder, "parquet")
    print(table_of(results))


def page_table() -> str:
    return table_of(load_results(RESULTS / "regularisation_gain" / f"{TASK}-cpu"))


def table_of(results: Results) -> str:
    """A row for each method: its losses, and how they compare with those of no regularisation, seed by seed."""
    final = last_of_each_run(results.incumbent).set_index("seed")
    losses = {method: runs["best_val_loss"] for method, runs in final.groupby("method")}
    rows = []
    for method in [method for method in METHODS if method in losses]:
        ratio = mean_interval((losses[method] / losses["none"]).to_numpy())
        each = ", ".join(f"{loss:.4f}" for loss in losses[method])
        test = final.loc[final["method"] == method, "test_loss_at_best"].mean()
        rows.append([method, each, f"{losses[method].mean():.4f}", f"{test:.4f}"])
        rows[-1].append("1" if method == "none" else with_interval(ratio.mean, ratio.low, ratio.high))
    header = ["method", "best val. loss by seed", "mean", "its test loss, mean", "val. loss over unregularised [95 %]"]
    return markdown(header, rows)


TABLES: Mapping[str, Callable[[], str]] = {"regularisation-gain": page_table}


if __name__ == "__main__":
    main(__file__, __doc__, METHODS, {TASK: STUDIES}, write)
