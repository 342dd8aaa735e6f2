"""How much the start values matter to a self-tuning run.

STN with its response input counted from the start values, as this project does, against the raw coordinate as it is, as
in the papers (arXiv 1903.03088); and Delta-STN, whose input is the offset from the mean. On the digits (MLP, five
hyperparameters) from twelve random start values, on Fashion-MNIST (MLP, four hyperparameters, 1,000 images) from
corners, edges and the middle of the domain. Prints the best validation loss of every run; results go to
experiments/results/start_values.

    python experiments/start_values.py              # about ten minutes on 2 cores
    python experiments/start_values.py --smoke-test
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pages import RESULTS, markdown

from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer

# algorithm, response size, whether the input is the raw coordinate as it is.
FORMS = [
    ("stn", "full", False),
    ("stn", "full", True),
    ("stn", "gate", False),
    ("stn", "gate", True),
    ("delta-stn", "full", False),
]
TASKS: dict[str, dict[str, Any]] = {
    "digits-mlp": {},
    "fashion-mnist-mlp": {
        "train_images": 1000,
        "valid_images": 1000,
        "test_images": 500,
        "hidden": 400,
        "epochs": 30,
    },
}
SMOKE: dict[str, dict[str, Any]] = {"digits-mlp": {"epochs": 2, "warmup_epochs": 1, "train_images": 200, "hidden": 16}}
# Shares of the domain, in the order of the space.
CORNERS = [
    (0.0, 0.0, 0.0, 0.0),
    (0.5, 0.5, 0.5, 0.5),
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
    (0.9, 0.9, 0.9, 0.9),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "start_values")
    arguments = parser.parse_args()
    tasks = SMOKE if arguments.smoke_test else TASKS
    wanted = [
        (name, settings, form, start)
        for name, settings in tasks.items()
        for start in starts(get_task(name, **settings), 2 if arguments.smoke_test else 12)
        for form in FORMS
    ]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        rows = list(pool.map(train, *zip(*wanted, strict=True)))
    table = pd.DataFrame(rows)
    arguments.results.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.results / "runs.csv", index=False)
    by_form = table.groupby(["task", "algorithm", "response", "input"], sort=False)
    summary = by_form.agg(
        runs=("best_val_loss", "size"),
        median=("best_val_loss", "median"),
        worst=("best_val_loss", "max"),
        mean=("best_val_loss", "mean"),
        restarted=("restarts", "sum"),
        diverged=("diverged", "sum"),
    )
    print(summary.to_string(float_format="%.3f"))


def starts(task: Task, count: int) -> Iterator[dict[str, float]]:
    """Random start values for a task of five hyperparameters, the corners and edges for one of four."""
    generator = torch.Generator().manual_seed(0)
    shares = CORNERS if len(task.space) == 4 else torch.rand(count, len(task.space), generator=generator).tolist()
    for share in shares:
        yield {name: at(domain, part) for (name, domain), part in zip(task.space.items(), share, strict=True)}


def at(domain: Any, share: float) -> float:
    """The value at a share of the way through a domain; an end of it at 0 and 1."""
    if share in (0.0, 1.0):
        return float(domain.nearest(-1e30 if share == 0.0 else 1e30))
    return float(domain.transform(torch.logit(torch.tensor(share, dtype=torch.float64))))


def train(name: str, settings: dict[str, Any], form: tuple[str, str, bool], start: dict[str, float]) -> dict[str, Any]:
    torch.set_num_threads(1)
    algorithm, response, raw_input = form
    papers = {"response_origin": None, "shrink_gates": False} if raw_input else {}
    trainer = Trainer(get_task(name, **settings, **papers, response=response), algorithm=algorithm, hp=start)
    reports = []
    while trainer.epoch < trainer.task.training.epochs and not trainer.diverged:
        reports.append(trainer.run_epoch())
    best = min(reports, key=lambda report: report["val_loss"])
    return {
        "task": name,
        "algorithm": algorithm,
        "response": response,
        "input": "raw" if raw_input else "offset from the mean" if algorithm == "delta-stn" else "from the start",
        "best_val_loss": best["val_loss"],
        "test_loss_at_best": best["test_loss"],
        "restarts": trainer.restarts,
        "diverged": bool(trainer.diverged),
        **{f"start/{key}": value for key, value in start.items()},
        **{key: value for key, value in reports[-1].items() if key.startswith("hp/")},
    }


def page_table() -> str:
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


TABLES: Mapping[str, Callable[[], str]] = {"start-values": page_table}


if __name__ == "__main__":
    main()
