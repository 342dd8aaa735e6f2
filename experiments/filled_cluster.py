"""Whether a comparison fills the cluster: its wall clock, what its processes spend, and the share of slots in use.

`tune-stn compare` runs as a process of its own, and this script looks at the processes of its Ray ten times a second:
a slot is in use while a trial's process has it, from the first trial to the last. `training` is what the trials' epochs
cost by themselves, training and evaluation: the epochs in the tables, by the CPU seconds of an epoch under each
algorithm, measured here afterwards without Ray, on one thread. Three studies:

    demo    that of `make demo`: six methods at two seeds of the digits
    full    13 methods at ten seeds of the digits, budget 500
    sleep   the same methods at ten seeds of a task whose epochs sleep, on a Ray that is told it has as many CPUs as
            `--slots`: what the order of the runs, starts and ends leave empty on a cluster larger than this machine

Of `sleep`, simulated are the CPUs and the training: an epoch takes a few steps of a small network, and sleeps, the same
time under every method. All else is real, and shares the CPUs that this machine has: the processes of runs and trials
and their starts, Ray, Tune, searchers and schedulers, checkpoints, journals, tables and the report. That is two CPU
seconds a run, which a real cluster has more CPUs for: so the runs must be long against it. Slots in use are those in
which an epoch sleeps, as the epochs note down themselves; a trial that starts uses none. The bound is (epochs in the
tables) x (seconds of an epoch): of all of them over the slots, or of the longest run with the run that it is made from.
No order of the runs comes near to it where a slot has only two or three of them, so a larger cluster needs more seeds.

Writes a row to experiments/results/filled_cluster/studies.csv, and of `sleep` the slots in use over time as a table and
a picture.

    python experiments/filled_cluster.py demo               # a minute, on a machine with nothing else to do
    python experiments/filled_cluster.py full --seeds 10    # a quarter of an hour
    python experiments/filled_cluster.py sleep --slots 16                 # nine minutes
    python experiments/filled_cluster.py sleep --slots 64 --seeds 20 --epoch-seconds 20   # 25, 12 GB of memory
    python experiments/filled_cluster.py demo --smoke-test
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from provenance import provenance

import tune_stn
from tune_stn import SearchSpace, Task, get_task
from tune_stn.data.splits import Split, Splits
from tune_stn.methods import get_method
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import LogUniform
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import mean_over_examples
from tune_stn.training import Trainer

RESULTS = Path(__file__).parent / "results" / "filled_cluster"
DEMO = {"methods": "auto,stn,fixed,random,gp-bo,pbt", "budget": 100, "seeds": 2, "settings": {"epochs": 40}}
ALL = "auto,stn,delta-stn,progress-ratio,frozen,replayed,last-values,random,gp-bo,tpe,hyperband,asha,pbt"
TUNE_STN = [sys.executable, "-c", "import sys; sys.argv[0] = 'tune-stn'; from tune_stn.cli import main; main()"]
LOOK_EVERY_S = 0.1
TRIAL, RUNNER = "ray::STNTrainable", "ray::Runner"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("demo", "full", "sleep"))
    parser.add_argument("--seeds", type=int, help="default: 2 of the demo, else 10")
    parser.add_argument("--slots", type=int, default=16, help="of the cluster that sleeps")
    parser.add_argument("--epoch-seconds", type=float, default=4.0, help="that an epoch sleeps")
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    row = sleeping(arguments) if arguments.study == "sleep" else working(arguments)
    row |= {"study": arguments.study, **provenance("ray"), "cpus": os.cpu_count()}
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / "studies.csv"
    before = pd.read_csv(path) if path.exists() else pd.DataFrame()
    same = (before.get("study") == row["study"]) & (before.get("slots") == row["slots"]) if len(before) else []
    pd.concat([before[~same] if len(before) else before, pd.DataFrame([row])]).to_csv(path, index=False)
    for name in ("runs", "trials", "slots", "wall_s", "slots_in_use", "bound_s", "ratio", "trials_ratio"):
        print(f"{name:13} {row[name]:.4g}")
    for name in sorted(name for name in row if name.startswith("cpu_s/")):
        print(f"{name:40} {row[name]:.1f}")


def working(arguments: argparse.Namespace) -> dict[str, Any]:
    """A study of the digits, on this machine's CPUs."""
    study = dict(DEMO) if arguments.study == "demo" else {"methods": ALL, "budget": 500, "seeds": 10, "settings": {}}
    if arguments.smoke_test:
        study |= {"methods": "auto,random", "budget": 4, "seeds": 1, "settings": {"epochs": 2, "warmup_epochs": 0}}
    study["seeds"] = arguments.seeds or study["seeds"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "study"
        settings = [part for key, value in study["settings"].items() for part in ("--set", f"{key}={value}")]
        command = ["compare", "--task", "digits-mlp", "--methods", study["methods"], "--budget", str(study["budget"])]
        seen = watch([*TUNE_STN, *command, "--seeds", str(study["seeds"]), *settings, "--out", str(out)])
        reports = tune_stn.load_results(out).reports
    epochs = reports.groupby("method").size()
    cost = cpu_seconds_of_an_epoch({get_method(name).algorithm for name in epochs.index}, study["settings"])
    training = sum(count * cost[get_method(name).algorithm] for name, count in epochs.items())
    slots = os.cpu_count() or 1
    return summary(seen, reports, slots, bound_s=training / slots) | {"cpu_s/training": training}


def sleeping(arguments: argparse.Namespace) -> dict[str, Any]:
    """A study whose epochs sleep, on a Ray that is told it has more CPUs than there are."""
    smoke, seconds = arguments.smoke_test, 0.2 if arguments.smoke_test else arguments.epoch_seconds
    seeds, methods = arguments.seeds or (1 if smoke else 10), "auto,random,replayed" if smoke else ALL
    with tempfile.TemporaryDirectory() as scratch:
        out, notes = Path(scratch) / "study", Path(scratch) / "notes"
        notes.mkdir()
        code = f"import filled_cluster as f; f.compare({str(out)!r}, {arguments.slots}, {seeds}, {methods!r})"
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = {"PYTHONPATH": path, SECONDS: str(seconds), NOTES: str(notes)}
        environment["RAY_worker_niceness"] = "0"  # Ray's own is 15: whatever else this machine does would come first
        began = time.time()
        seen = watch([sys.executable, "-c", code], environment, look_every_s=1.0)
        reports = tune_stn.load_results(out).reports
        slept = [float(time) - began for file in notes.iterdir() for time in file.read_text().split()]
    runs = seconds * reports.groupby(["method", "seed"]).size()
    before = [runs[followed, seed] if (followed := get_method(name).follows) else 0.0 for name, seed in runs.index]
    longest = float((runs + before).max())
    seen.times, seen.trials = in_use(slept[::2], slept[1::2])
    save(seen, arguments.slots, arguments.results)
    row = summary(seen, reports, arguments.slots, bound_s=max(float(runs.sum()) / arguments.slots, longest))
    return row | {"epoch_s": seconds, "work_s": float(runs.sum()), "longest_run_s": longest}


def in_use(begins: list[float], ends: list[float]) -> tuple[list[float], list[int]]:
    """When the number of slots in use changed, and what it was from then on."""
    changes = pd.concat([pd.Series(1, begins), pd.Series(-1, ends)]).groupby(level=0).sum()
    return changes.index.to_list(), changes.cumsum().to_list()


def summary(seen: Seen, reports: pd.DataFrame, slots: int, *, bound_s: float) -> dict[str, Any]:
    """The row of a study.

    `ratio` is its wall clock over what it cannot be less than, `trials_ratio` that from the first trial's training to
    the last one's, without the start and end of the command.
    """
    using = pd.Series(seen.trials, seen.times)
    using = using[using.cumsum() > 0]
    last = using[using > 0].index[-1]
    lasted = pd.Series(using.index[1:], using.index[:-1]) - using.index[:-1]
    using, lasted = using[:last].iloc[: len(lasted)], lasted[:last]
    return {
        "runs": len(reports.groupby(["method", "seed"])),
        "trials": reports["trial_id"].nunique(),
        "slots": slots,
        "wall_s": seen.wall_s,
        "first_trial_s": using.index[0],
        "last_trial_s": using.index[-1] + lasted.iloc[-1],
        "slots_in_use": float((using.clip(upper=slots) * lasted).sum() / lasted.sum()) / slots,
        "bound_s": bound_s,
        "ratio": seen.wall_s / bound_s,
        "trials_ratio": float(lasted.sum()) / bound_s,
        **{f"cpu_s/{kind}": seconds for kind, seconds in seen.cpu_s.items()},
        "peak_memory_mib": seen.memory_mib,
    }


class Seen:
    """What was seen of a study's processes.

    Attributes:
        wall_s: from its command to its end.
        trials: slots in use, each time.
        times: seconds since the command, each time.
        cpu_s: CPU seconds by kind of process.
        memory_mib: the most that all had together, shared pages once (proportional set size).
    """

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.trials: list[int] = []
        self.times: list[float] = []
        self.cpu_s: dict[str, float] = {}
        self.memory_mib = 0.0


def watch(command: list[str], environment: Mapping[str, str] | None = None, look_every_s: float = LOOK_EVERY_S) -> Seen:
    """Run a command to its end, and look at what it starts; its output goes to this script's."""
    seen, began = Seen(), time.monotonic()
    spent: dict[int, tuple[str, float]] = {}
    study = psutil.Popen(command, env={**os.environ, **(environment or {})})
    while study.poll() is None:
        trials, memory = 0, 0.0
        for process in [study, *study.children(recursive=True)]:
            try:
                words = process.cmdline()  # none of a process that has ended and is not taken notice of yet
                kind = kind_of(words, process.pid == study.pid) if words else spent[process.pid][0]
                times = process.cpu_times()
                if len(seen.times) % 50 == 0:
                    memory += process.memory_full_info().pss / 2**20
            except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
                continue
            spent[process.pid] = kind, times.user + times.system
            trials += kind == "trials"
        seen.trials.append(trials)
        seen.times.append(time.monotonic() - began)
        seen.memory_mib = max(seen.memory_mib, memory)
        time.sleep(look_every_s)
    if study.returncode:
        raise SystemExit(f"the study ended with exit code {study.returncode}")
    seen.wall_s = time.monotonic() - began
    by_kind: dict[str, float] = defaultdict(float)
    for kind, seconds in spent.values():
        by_kind[kind] += seconds
    seen.cpu_s = dict(by_kind)
    return seen


def kind_of(command: list[str], is_study: bool) -> str:
    """What a process does for the study."""
    words = " ".join(command)
    if words.startswith(TRIAL):
        return "trials"
    if words.startswith(RUNNER):
        return "runs"
    if is_study:
        return "study"
    return "starting workers" if "fork_server" in words or "_worker" in words or "fork_client" in words else "Ray"


def cpu_seconds_of_an_epoch(algorithms: set[str], settings: Mapping[str, Any], epochs: int = 10) -> dict[str, float]:
    """CPU seconds of an epoch on the digits, training and evaluation, by each algorithm: on one thread, without Ray."""
    torch.set_num_threads(1)
    task = get_task("digits-mlp", **settings)
    found = {}
    for algorithm in algorithms:
        trainer = Trainer(task, algorithm=algorithm, seed=0)
        trainer.run_epoch()  # warms up
        began = time.process_time()
        count = min(epochs, task.training.epochs - 1)
        for _ in range(count):
            trainer.run_epoch()
        found[algorithm] = (time.process_time() - began) / count
    return found


SECONDS = "FILLED_CLUSTER_EPOCH_SECONDS"
NOTES = "FILLED_CLUSTER_NOTES"  # a folder, for a file of each process: when an epoch's sleep began and ended, by turns
SPLITS = {"train": 80, "valid": 60, "test": 40}  # examples; over those of validation, seen once an epoch, it sleeps


def sleeper() -> Task:
    """A regression whose epochs sleep: in their evaluation, for trials do steps when they are set up."""
    seconds, notes = float(os.environ[SECONDS]), Path(os.environ[NOTES])

    def slept(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(outputs) == SPLITS["valid"]:
            began = time.time()
            time.sleep(seconds)
            with open(notes / str(os.getpid()), "a") as file:
                file.write(f"{began} {time.time()}\n")
        return torch.zeros(())

    def draw(count: int, seed: int) -> Split:
        inputs = torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))
        return Split(inputs, inputs[:, :1])

    @mean_over_examples
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    return Task(
        name="sleeper",
        description="sleeps",
        model=lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)),
        data=lambda seed: Splits(**{name: draw(count, seed) for name, count in SPLITS.items()}),
        space=SearchSpace({"penalty": LogUniform(1e-4, 1e-1)}),
        start={"penalty": 1e-3},
        loss=loss,
        metrics={"slept": slept},
        penalties=(WeightDecay("penalty"),),
        training=Training(epochs=10, batch_size=20, lr=0.01, warmup_epochs=1, train_steps=2),
    )


def compare(out: str, slots: int, seeds: int, methods: str) -> None:
    """The study that sleeps, in a process of its own."""
    import ray

    from tune_stn.tuning.cluster import _ENVIRONMENT, Cluster, _environment, _start_local
    from tune_stn.tuning.fork_server import fork_server
    from tune_stn.tuning.token import protect

    protect()
    with fork_server() as python, _environment(_ENVIRONMENT):
        _start_local(cpus=slots, python=python)
        tune_stn.compare(
            "filled_cluster:sleeper", methods.split(","), budget=20, seeds=seeds, out=out, cluster=Cluster(),
            rehearsal=False, say=print,
        )  # fmt: skip
        ray.shutdown()


def save(seen: Seen, slots: int, results: Path) -> None:
    """The slots in use over time, as a table and a picture."""
    results.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"seconds": seen.times, "slots_in_use": seen.trials}).round(2)
    table.to_csv(results / f"slots-{slots}.csv", index=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(seen.times, seen.trials, step="post", color="tab:blue", alpha=0.5, linewidth=0)
    axes.axhline(slots, color="0.4", linewidth=0.8)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(
        xlabel="seconds since the command", ylabel="slots that train", xlim=(0, seen.wall_s), ylim=(0, 1.08 * slots)
    )
    figure.savefig(results / f"slots-{slots}.png", dpi=150)


if __name__ == "__main__":
    main()
