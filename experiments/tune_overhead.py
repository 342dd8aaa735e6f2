"""What an epoch costs more under Tune than in a plain loop.

A self-tuning CNN on random images, as many as make an epoch take `--epoch-seconds`. Three sides, each in a process of
its own with the same number of threads, train the same epochs, bit for bit:

    tune    through the project's own run path: trial process, recorder, budget stopper, a checkpoint every epoch
    plain   `Trainer.run_epoch` in a loop; an epoch of it after each report of the trial, while the trial waits
    alone   the same loop before Ray is started

So `tune` is held to an epoch that follows it at once (on a shared machine nothing else means anything), and to one of
the same round without any process of Ray. An epoch under Tune is the wall time from letting the trial go on after a
report to its next report. Each side's first epoch warms it up and is not counted; what it takes to start and end a run
is apart. Writes epochs.csv and summary.csv to experiments/results/tune_overhead.

    python experiments/tune_overhead.py              # about 10 minutes, on a machine with nothing else to do
    python experiments/tune_overhead.py --smoke-test
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pages import RESULTS, markdown

from tune_stn.data.splits import Split, Splits
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer

BATCH = 128
PROBED = 10 * BATCH  # images, to find how many an epoch wants
GOAL = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="of each side in a round; the first is not counted")
    parser.add_argument("--epoch-seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "tune_overhead")
    parser.add_argument("--serve", type=int, metavar="IMAGES", help="be the plain loop of another process")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(images(arguments.serve, arguments.epochs), arguments.threads)
    if arguments.smoke_test:
        arguments.rounds, arguments.epochs, count = 1, 3, BATCH
    else:
        with Loop(PROBED, 2, arguments.threads) as probe:
            probe.epoch()
            count = BATCH * max(1, round(arguments.epoch_seconds / probe.epoch()["seconds"] * PROBED / BATCH))
    print(f"{count} images, {arguments.threads} thread(s)")
    arguments.results.mkdir(parents=True, exist_ok=True)

    rows: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        with Loop(count, arguments.epochs, arguments.threads) as alone:
            found = [{"side": "alone", "epoch": n + 1, **alone.epoch()} for n in range(arguments.epochs)]
        found += under_tune(count, arguments.epochs, arguments.threads)
        rows += [{"round": number, **row} for row in found]
        epochs = pd.DataFrame(rows)
        check(epochs)
        print(epochs[epochs["round"] == number].to_string(index=False, float_format="%.4f"), flush=True)
        epochs.to_csv(arguments.results / "epochs.csv", index=False)
        summarise(epochs, count, arguments.threads).to_csv(arguments.results / "summary.csv", index=False)
    print(summarise(epochs, count, arguments.threads).T.to_string(header=False))


def images(count: int, epochs: int) -> Task:
    """The Fashion-MNIST CNN and its six hyperparameters on random images, with a fifth as many for each evaluation."""

    def data(seed: int) -> Splits:
        generator = torch.Generator().manual_seed(seed)

        def split(size: int) -> Split:
            inputs = torch.randn(size, 1, 28, 28, generator=generator)
            return Split(inputs, torch.randint(10, (size,), generator=generator))

        return Splits(split(count), split(count // 5), split(count // 5))

    task = get_task("fashion-mnist-cnn", epochs=epochs, warmup_epochs=0, batch_size=BATCH)
    return replace(task, name="random-images", data=data)


# The plain loop ---------------------------------------------------------------------------------------------------


def serve(task: Task, threads: int) -> None:
    """An epoch for each line of input: its seconds and its validation loss."""
    torch.set_num_threads(threads)
    trainer = Trainer(task, algorithm="stn")
    for _ in sys.stdin:
        began = time.perf_counter()
        report = trainer.run_epoch()
        print(json.dumps({"seconds": time.perf_counter() - began, "val_loss": report["val_loss"]}), flush=True)


class Loop:
    """A process that trains the plain loop, an epoch when it is asked to."""

    def __init__(self, count: int, epochs: int, threads: int) -> None:
        options = ["--serve", str(count), "--epochs", str(epochs), "--threads", str(threads)]
        command = [sys.executable, str(Path(__file__).resolve()), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def epoch(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()


# Under Tune -------------------------------------------------------------------------------------------------------


def under_tune(count: int, epochs: int, threads: int) -> list[dict[str, Any]]:
    """Rows of a trial and of the plain loop beside it."""
    # Here, for the processes of plain loops are to know nothing of Ray.
    from tune_stn.methods import get_method
    from tune_stn.study.run import Run, execute
    from tune_stn.tuning.cluster import Cluster

    rows: list[dict[str, Any]] = []
    task = images(count, epochs)
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(cpus_per_trial=threads).session(),
        Loop(count, epochs, threads) as loop,
    ):
        released = time.perf_counter()
        rows.append({"side": "start of Ray", "epoch": 0, "seconds": released - began})

        def on_report(report: Mapping[str, Any], cost_total: float) -> None:
            nonlocal released
            seconds, epoch = time.perf_counter() - released, int(report["epoch"])
            beside = loop.epoch()
            if epoch == 1:  # the trial's process was started, too
                rows.append({"side": "start of the run", "epoch": 0, "seconds": seconds - beside["seconds"]})
            rows.append({"side": "tune", "epoch": epoch, "seconds": seconds, "val_loss": report["val_loss"]})
            rows.append({"side": "plain", "epoch": epoch, **beside})
            released = time.perf_counter()

        run = Run(
            task=task,
            config={"task": task},
            method=get_method("stn"),
            seed=0,
            budget=math.inf,
            trials=1,
            folder=Path(folder) / "state" / "stn-seed0",
        )
        execute(run, Cluster(cpus_per_trial=threads), on_report)
        rows.append({"side": "end of the run", "epoch": 0, "seconds": time.perf_counter() - released})
    return rows


# Results ----------------------------------------------------------------------------------------------------------


def check(epochs: pd.DataFrame) -> None:
    """All sides have trained the same epochs, or their times would mean nothing."""
    losses = epochs[epochs["epoch"] > 0].groupby(["round", "epoch"])["val_loss"]
    if not ((losses.count() == 3) & (losses.nunique() == 1)).all():
        raise SystemExit(f"the sides did not train the same epochs:\n{epochs.to_string()}")


def summarise(epochs: pd.DataFrame, count: int, threads: int) -> pd.DataFrame:
    """One row: median seconds, and median and quartiles of what an epoch under Tune costs more."""
    counted = epochs[epochs["epoch"] > 1].pivot(index=["round", "epoch"], columns="side", values="seconds")
    row: dict[str, Any] = {f"{side}_s": counted[side].median() for side in ("tune", "plain", "alone")}
    for side in ("plain", "alone"):
        low, median, high = (counted["tune"] / counted[side] - 1).quantile([0.25, 0.5, 0.75])
        row |= {f"over_{side}": median, f"over_{side}_quartile_1": low, f"over_{side}_quartile_3": high}
    row |= {"goal": GOAL, "rounds": epochs["round"].nunique(), "epochs": len(counted)}
    apart = epochs[epochs["epoch"] == 0].groupby("side")["seconds"].median()
    row |= {f"{side.replace(' ', '_').lower()}_s": seconds for side, seconds in apart.items()}
    row |= {"images": count, "threads": threads, "load": os.getloadavg()[0], "cpus": os.cpu_count()}
    row |= {"machine": platform.machine(), "torch": torch.__version__, "ray": metadata.version("ray")}
    return pd.DataFrame([row])


def page_table() -> str:
    row = pd.read_csv(RESULTS / "tune_overhead" / "summary.csv").iloc[0]
    rows = []
    for side, what in (("plain", "beside it, in turns"), ("alone", "without Ray in memory")):
        ends = (100 * row[f"over_{side}{end}"] for end in ("", "_quartile_1", "_quartile_3"))
        rows.append([f"the same loop {what}", "{:.2f} ({:.2f} to {:.2f})".format(*ends), f"{row[f'{side}_s']:.2f}"])
    return markdown(["against", "an epoch under Tune takes more, % (quartiles)", "its epoch, s"], rows)


TABLES: Mapping[str, Callable[[], str]] = {"tune-overhead": page_table}


if __name__ == "__main__":
    main()
