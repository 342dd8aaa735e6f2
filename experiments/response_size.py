"""What the cheaper forms of the response cost in quality: full, rank 8, gate-only, response steps on part of a batch.

STN and Delta-STN on Fashion-MNIST (CNN, 5,000 training and 5,000 validation images, five seeds) and on the digits (MLP,
ten seeds), each from the task's start values. Every run is appended to experiments/results/response_size/runs.csv when
it ends, and a run that is there is not run again; summary.csv holds means and, paired by seed, the differences to the
full form of the same algorithm. The automatic choice of the response size rests on these (training/response_size.py).

    python experiments/response_size.py              # the figures of the results page; about an hour on 2 cores
    python experiments/response_size.py --smoke-test
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pages import RESULTS, markdown

from tune_stn.study.statistics import mean_interval, paired_difference
from tune_stn.study.summary import with_interval
from tune_stn.tasks import get_task
from tune_stn.training import Trainer

# algorithm, response size, share of the batch in a response step; the first of an algorithm is what others are held to.
FORMS = [
    ("stn", "full", 1.0),
    ("stn", 8, 1.0),
    ("stn", "gate", 1.0),
    ("delta-stn", "full", 1.0),
    ("delta-stn", 8, 1.0),
    ("delta-stn", "gate", 1.0),
    ("delta-stn", "full", 0.25),
    ("delta-stn", "gate", 0.25),
]
TASKS = {
    "digits-mlp": ({}, 10),
    "fashion-mnist-cnn": ({"train_images": 5000, "valid_images": 5000, "test_images": 2000, "epochs": 40}, 5),
}
SMOKE = {
    "digits-mlp": ({"epochs": 2, "warmup_epochs": 1}, 2),
}
KEY = ["task", "algorithm", "response", "share", "seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "response_size")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    runs_file = arguments.results / "runs.csv"

    done = pd.read_csv(runs_file, dtype={"response": str}) if runs_file.exists() else pd.DataFrame(columns=KEY)
    finished = set(done[KEY].itertuples(index=False, name=None))
    wanted = [run for run in runs(SMOKE if arguments.smoke_test else TASKS) if run[0] not in finished]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for future in as_completed(pool.submit(train, *run) for run in wanted):
            row = pd.DataFrame([future.result()])
            row.to_csv(runs_file, mode="a", header=not runs_file.exists(), index=False)
            print(row.to_string(index=False, header=False), flush=True)

    summary = summarise(pd.read_csv(runs_file, dtype={"response": str}))
    summary.to_csv(arguments.results / "summary.csv", index=False)
    print(summary.to_string(index=False, float_format="%.4f"))


def runs(tasks: dict[str, tuple[dict[str, Any], int]]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Key and settings of every run, seed by seed, so that a table of what is there so far is paired."""
    for task, (settings, seeds) in tasks.items():
        for seed in range(seeds):
            for algorithm, response, share in FORMS:
                yield (task, algorithm, str(response), share, seed), {**settings, "response": response}


def train(key: tuple[Any, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """One run: losses at the best validation epoch, final values, cost and time."""
    torch.set_num_threads(1)
    task, algorithm, _, share, seed = key
    trainer = Trainer(get_task(task, **settings, response_share=share), algorithm=algorithm, seed=seed)
    began = time.perf_counter()
    best: dict[str, float] = {}
    for _ in range(trainer.task.training.epochs):
        report = trainer.run_epoch()
        if not best or report["val_loss"] < best["val_loss"]:
            best = report
        if trainer.diverged:
            break
    return dict(zip(KEY, key, strict=True)) | {
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "test_loss_at_best": best["test_loss"],
        "epochs": report["epoch"],
        "cost": report["cost"],
        "device_time_s": report["device_time_s"],
        "wall_time_s": time.perf_counter() - began,
        "restarts": trainer.restarts,
        "diverged": bool(trainer.diverged),
        "final": "; ".join(f"{k[3:]} {v:.3g}" for k, v in report.items() if k.startswith("hp/")),
        "torch": torch.__version__,
    }


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each task and form: means with 95 % intervals, and differences to the algorithm's full form."""
    rows = []
    for (task, algorithm), group in runs.groupby(["task", "algorithm"]):
        by_form = {form: part.set_index("seed") for form, part in group.groupby(["response", "share"])}
        full = by_form["full", 1.0]
        for (response, share), part in by_form.items():
            row = {"task": task, "algorithm": algorithm, "response": response, "share": share, "seeds": len(part)}
            row["diverged"], row["restarts"] = int(part["diverged"].sum()), int(part["restarts"].sum())
            row["cost"] = part["cost"].mean()
            for column in ("best_val_loss", "test_loss_at_best"):
                mean = mean_interval(part[column])
                row |= {column: mean.mean, f"{column}_low": mean.low, f"{column}_high": mean.high}
                both = part.index.intersection(full.index)
                if (response, share) != ("full", 1.0) and len(both) > 1:
                    difference = paired_difference(part.loc[both, column], full.loc[both, column])
                    row |= {f"{column}_minus_full": difference.mean, f"{column}_minus_full_low": difference.low}
                    row |= {f"{column}_minus_full_high": difference.high, f"{column}_p": difference.p_value}
            rows.append(row)
    return pd.DataFrame(rows)


def page_table() -> str:
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


TABLES: Mapping[str, Callable[[], str]] = {"response-size": page_table}


if __name__ == "__main__":
    main()
