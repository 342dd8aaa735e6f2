"""Whether STN finds one schedule from wherever it starts.

STN from five start values of the dropout rate before the last layer of the Fashion-MNIST CNN, everything else equal and
held (as in replay.py, whose task this is). Every run is appended to experiments/results/start_convergence/epochs.csv,
epoch by epoch, when it ends, and a run that is there is not run again; schedules.png shows the five schedules of each
seed, and spread.csv how far apart they are: the range and the standard deviation of the five values.

    python experiments/start_convergence.py --size cpu     # three seeds; about 10 minutes on 2 cores
    python experiments/start_convergence.py --smoke-test
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from pages import RESULTS, markdown
from replay import STUDIED, one_dropout

from tune_stn.tasks import get_task
from tune_stn.training import Trainer

STARTS = (0.05, 0.3, 0.5, 0.7, 0.9)
KEY = ["size", "seed", "start"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["cpu"], default="cpu")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "start_convergence")
    arguments = parser.parse_args()
    size = "smoke" if arguments.smoke_test else arguments.size
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / "epochs.csv"

    done = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=KEY)
    finished = set(done[KEY].itertuples(index=False, name=None))
    wanted = [(size, seed, start) for seed in range(arguments.seeds) for start in STARTS]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for future in as_completed(pool.submit(train, *key) for key in wanted if key not in finished):
            epochs = future.result()
            epochs.to_csv(file, mode="a", header=not file.exists(), index=False)
            print(epochs.tail(1).to_string(index=False, header=False), flush=True)

    epochs = pd.DataFrame(wanted, columns=KEY).merge(pd.read_csv(file), on=KEY)
    suffix = "-smoke" if arguments.smoke_test else ""
    spread = epochs.groupby(["seed", "epoch"])["value"].agg(range=lambda v: v.max() - v.min(), std="std").reset_index()
    spread.to_csv(arguments.results / f"spread{suffix}.csv", index=False)
    draw(epochs).savefig(arguments.results / f"schedules{suffix}.png", dpi=120)
    last = int(spread["epoch"].max())
    shown = spread[spread["epoch"].isin([0, last // 4, last // 2, last])]
    print(shown.pivot(index="epoch", columns="seed", values=["range", "std"]).to_string(float_format="%.3f"))


def train(size: str, seed: int, start: float) -> pd.DataFrame:
    """One run: the start, and the value and losses at the end of each epoch."""
    torch.set_num_threads(1)
    trainer = Trainer(get_task(one_dropout(size), test_every=1), algorithm="stn", hp={STUDIED: start}, seed=seed)
    rows = [{"epoch": 0, "value": start}]
    for _ in range(trainer.task.training.epochs):
        report = trainer.run_epoch()
        rows.append({"value": report[f"hp/{STUDIED}"]} | {k: report[k] for k in ("epoch", "val_loss", "test_loss")})
    return pd.DataFrame(rows).assign(size=size, seed=seed, start=start, torch=torch.__version__)


def draw(epochs: pd.DataFrame) -> Figure:
    """A panel for each seed, with a line for each start value."""
    seeds = sorted(epochs["seed"].unique())
    figure = Figure(figsize=(4 * len(seeds), 3.2), layout="constrained")
    panels = figure.subplots(1, len(seeds), sharey=True, squeeze=False)[0]
    for panel, seed in zip(panels, seeds, strict=True):
        for start, run in epochs[epochs["seed"] == seed].groupby("start"):
            panel.plot(run["epoch"], run["value"], label=f"from {start:g}")
        panel.set(title=f"seed {seed}", xlabel="epoch", ylim=(0, 1))
    panels[0].set_ylabel("dropout rate before the last layer")
    panels[0].legend(frameon=False)
    return figure


def page_table() -> str:
    table = pd.read_csv(RESULTS / "start_convergence" / "spread.csv")
    shown = sorted({0, table["epoch"].max() // 4, table["epoch"].max() // 2, table["epoch"].max()})
    rows = [
        [f"seed {seed}", *(f"{group.set_index('epoch')['range'][epoch]:.3f}" for epoch in shown)]
        for seed, group in table.groupby("seed")
    ]
    return markdown(["range of the five values", *(f"epoch {epoch}" for epoch in shown)], rows)


TABLES: Mapping[str, Callable[[], str]] = {"start-convergence": page_table}


if __name__ == "__main__":
    main()
