"""What a mistake costs: refused commands, each a process of its own, with the CPU seconds until it ends.

Printed, and written to results/refusals/refusals.csv: the exit code, the line, the CPU seconds of the process (user and
system, the start of Python included), and which of torch and Ray it had loaded by then. And what a rehearsal of all
algorithms costs on the largest built-in tasks, of noise in the shape of their data, written to rehearsals.csv.

    python experiments/refusals.py                    # a minute on one core
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from provenance import provenance

OWN = """
import torch
from torch import nn
from tune_stn import SearchSpace, Task, Training, Uniform
from tune_stn.data import Split, Splits

def make(*, path="2", width=20):
    split = Split(torch.randn(40, 20), torch.arange(40) % 2)
    return Task(
        name="mine", model=lambda: nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 2)),
        data=lambda seed: Splits(split, split, split), space=SearchSpace({"rate": Uniform(0, 0.9)}),
        start={"rate": 0.1}, dropout={path: "rate"}, training=Training(epochs=5, warmup_epochs=0),
    )
"""
RUN = ("run", "--algorithm", "stn", "--out", "out")
COMPARE = ("compare", "--methods", "stn,random", "--out", "out")
COMMANDS = {
    "unknown method": ("compare", "--task", "ridge", "--methods", "stn,nothing", "--budget", "9", "--out", "out"),
    "budget": (*COMPARE, "--task", "ridge", "--budget", "0"),
    "unknown task": (*COMPARE, "--task", "rigde", "--budget", "9"),
    "unknown option": (*RUN, "--task", "ridge", "--epoch", "9"),
    "form of a setting": (*RUN, "--task", "ridge", "--set", "lr"),
    "value of a setting": (*RUN, "--task", "digits-mlp", "--set", "hidden=0"),
    "unknown setting": (*RUN, "--task", "digits-mlp", "--set", "hiden=9"),
    "response of no layer": (*RUN, "--task", "digits-mlp", "--set", 'response={"99": "gate"}'),
    "no data": (*RUN, "--task", "cifar10-vgg16", "--set", "data_dir=nowhere"),
    "wrong dropout path": (*RUN, "--task", "own:make", "--set", 'path="7"'),
    "wrong shape": (*RUN, "--task", "own:make", "--set", "width=21"),
    "wrong shape, all methods": (*COMPARE, "--task", "own:make", "--set", "width=21", "--budget", "9"),
    "no study": ("report", "nowhere"),
}
# The command, and then what it has loaded, on a line of its own.
PROGRAM = """
import sys
from tune_stn.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*(name for name in ("torch", "ray") if name in sys.modules))
"""
# Prints the CPU seconds of the rehearsal alone.
REHEARSAL = """
import sys, time, torch
from tune_stn.data import Split, Splits, Text
from tune_stn.tasks import get_task
from tune_stn.training.rehearsal import rehearse
from tune_stn.training.rules import RULES
task = get_task(sys.argv[1])
torch.manual_seed(0)
if task.recurrent:
    splits = [Text(torch.randint(0, 10_000, (80_000,)), 70) for _ in range(3)]
else:
    splits = [Split(torch.rand(2_000, 3, 32, 32), torch.randint(0, 10, (2_000,))) for _ in range(3)]
began = time.process_time()
rehearse(task, RULES, Splits(*splits))
print(time.process_time() - began)
"""
LARGE = ("cifar10-alexnet", "cifar10-vgg16", "cifar10-resnet18", "ptb-lstm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="those whose names contain any of these")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "refusals")
    arguments = parser.parse_args()
    chosen = {
        name: command
        for name, command in COMMANDS.items()
        if not arguments.only or any(words in name for words in arguments.only)
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "own.py").write_text(OWN)
        table = pd.DataFrame([{"mistake": name} | refused(command, folder) for name, command in chosen.items()])
    print(table.to_string(index=False, max_colwidth=70))
    arguments.results.mkdir(parents=True, exist_ok=True)
    table.assign(**provenance("torch", "ray")).to_csv(arguments.results / "refusals.csv", index=False)
    if not arguments.only:
        large = pd.DataFrame([{"task": name, "cpu_s": round(rehearsal(name), 2)} for name in LARGE])
        print(large.to_string(index=False))
        large.assign(**provenance("torch")).to_csv(arguments.results / "rehearsals.csv", index=False)
    if any(table["code"] != 2):
        sys.exit("not all were refused")


def refused(command: tuple[str, ...], folder: str) -> dict[str, object]:
    """A row of the table."""
    before = _spent()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    line = done.stderr.strip().splitlines()[-1]
    return {
        "code": done.returncode,
        "cpu_s": round(_spent() - before, 2),
        "loaded": done.stdout.strip(),
        "line": line.removeprefix("tune-stn: "),
    }


def rehearsal(name: str) -> float:
    """CPU seconds of the rehearsal of a task."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REHEARSAL, name]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def _spent() -> float:
    """CPU seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
