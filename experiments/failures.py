"""Ways for a study to fail in the middle, and what `tune-stn compare --resume` makes of it when the cause is gone.

Each failure is a comparison on a tiny task of this script's own, whose trials fail while a file is there. Printed, and
written to results/failures/failures.csv, for each: the exit code; whether the reason stands in the output, in
study.json and in the report; the exit code when the command is given again with --resume (and, where a run has a
result, with --retry-failed) after the file is gone; and whether nothing is missing then. All share one local Ray, but
for the lost node, which needs a cluster of two. The full disk needs the right to mount one (Linux, root): without it,
that row says so.

    python experiments/failures.py                    # a quarter of an hour on 2 cores
    python experiments/failures.py --only "user exception" "lost node"
"""

from __future__ import annotations

import argparse
import html
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from provenance import provenance

# Imported by the trials, which take `cause` to be there for them alone: the rehearsal on the driver goes well.
TASKS = """
import os, resource, signal
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tune_stn.tasks import get_task

CAUSE, DRIVER = Path({cause!r}), {driver}

def failing():
    return CAUSE.exists() and os.getpid() != DRIVER

def tiny(*, hidden=16, **changes):
    plain = get_task("digits-mlp", train_images=100, hidden=hidden)
    training = replace(plain.training, epochs=4, warmup_epochs=0, eval_batch_size=2000, response="gate")
    return replace(plain, name="tiny", training=training, **changes)

def in_set_up():
    plain = tiny()
    def data(seed):
        if failing():
            raise RuntimeError("no data today")
        return plain.data(seed)
    return replace(plain, data=data)

def in_epoch(action, epoch):
    # The test split, which is told by its size, is evaluated once an epoch. Counted in the file, for a trial that is
    # started again goes on.
    size = len(tiny().data(0).test)
    def loss(outputs, targets):
        if failing() and len(targets) == size and not torch.is_grad_enabled():
            with open(CAUSE, "a") as file:
                file.write("x")
            if CAUSE.stat().st_size >= epoch:
                action()
        return nn.functional.cross_entropy(outputs, targets)
    return tiny(loss=loss)

def raises(words):
    raise RuntimeError(words)

def user_exception():
    return in_epoch(lambda: raises("my loss fails in epoch 3"), 3)

def killed():
    return in_epoch(lambda: os.kill(os.getpid(), signal.SIGKILL), 2)

def out_of_memory():
    def eat():
        # What the process has, and a little: the next large tensor does not fit.
        has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (has + 2**24, before[1]))
        try:
            torch.ones(2**31)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    return in_epoch(eat, 2)

def not_a_number():
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (float("nan") if failing() else 1.0)
    return tiny(loss=loss)

class Reads:
    # Fails at other values than the start's, which every method tries first.
    names = ("dropout_input",)
    def __call__(self, inputs, sample):
        if failing() and abs(float(sample["dropout_input"].flatten()[0]) - tiny().start["dropout_input"]) > 1e-4:
            raise RuntimeError("only the start values work")
        return inputs

def one_method():
    return tiny(augmentations=(*tiny().augmentations, Reads()))

def slow():
    import time
    def loss(outputs, targets):
        time.sleep(0.3)
        return nn.functional.cross_entropy(outputs, targets)
    return tiny(loss=loss)
"""


@dataclass(frozen=True)
class Failure:
    """A way to fail.

    Attributes:
        name: Of it.
        task: The attribute of the module that fails so.
        reason: A part of what the user has to be told.
        code: The exit code that is right.
        methods: Of the comparison.
        budget: Of each run.
        more: Further options.
        retry: Whether the run has a result, so that its failed trials are run again only with --retry-failed.
        settings: Right ones in place of those in `more`, for a command that was refused.
    """

    name: str
    task: str
    reason: str
    code: int = 1
    methods: str = "fixed"
    budget: float = 4
    more: tuple[str, ...] = ()
    retry: bool = False
    mended: tuple[str, ...] | None = field(default=None)


BOTH = "fixed,random"
FAILURES = (
    Failure("all trials", "in_set_up", "no data today", methods=BOTH, budget=8),
    Failure("one method", "one_method", "only the start values work", methods=BOTH, budget=12),
    Failure("worker killed four times", "killed", "worker process has died", code=0, retry=True),
    Failure(
        "disk full",
        "tiny",
        "No space left on device",
        budget=30,
        more=("--set", "epochs=30", "--set", "hidden=1000"),
    ),
    Failure("out of memory by a limit", "out_of_memory", "allocate memory", code=0, retry=True),
    Failure("metric NaN from the start", "not_a_number", "loss became nan in epoch 1", methods=BOTH, budget=6),
    Failure("user exception in epoch 3", "user_exception", "my loss fails in epoch 3", code=0, retry=True),
    Failure(
        "node lost for good",
        "slow",
        "nodes were lost",
        budget=40,
        more=("--resources", "far=1", "--set", "epochs=40"),
    ),
    Failure("budget below one epoch", "tiny", "not even one epoch", code=2, budget=0.5, mended=("--budget", "4")),
    Failure(
        "no hyper-step",
        "tiny",
        "would tune nothing",
        code=2,
        methods="stn",
        more=("--set", "warmup_epochs=4"),
        mended=("--set", "warmup_epochs=0"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="those whose names contain any of these")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "failures")
    arguments = parser.parse_args()
    chosen = [one for one in FAILURES if not arguments.only or any(words in one.name for words in arguments.only)]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        cause = folder / "cause"
        (folder / "failing_tasks.py").write_text(TASKS.format(cause=str(cause), driver=os.getpid()))
        # Ray's processes look for modules where this one does when it starts them.
        sys.path.insert(0, scratch)
        stack.callback(sys.path.remove, scratch)
        os.environ["PYTHONPATH"] = os.pathsep.join([scratch, *filter(None, [os.environ.get("PYTHONPATH")])])
        rows = []
        for failure in sorted(chosen, key=lambda one: one.name == "node lost for good"):
            rows.append(try_out(failure, folder, cause))
            print("  ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    table, path = pd.DataFrame(rows).assign(**provenance("ray")), arguments.results / "failures.csv"
    if path.exists():  # what was not tried now stays
        before = pd.read_csv(path)
        table = pd.concat([before[~before["failure"].isin(table["failure"])], table])
    table.to_csv(path, index=False)
    right = sum(row["right"] is True for row in rows)
    print(f"{right} of {len(rows)} failures ended as they should, and were mended")
    if right < len(rows):
        sys.exit(1)


def try_out(failure: Failure, folder: Path, cause: Path) -> dict[str, Any]:
    """Let a study fail, and mend it: a row of the table."""
    out = folder / failure.name.replace(" ", "-") / "study"
    out.parent.mkdir()
    cause.touch()
    row: dict[str, Any] = {"failure": failure.name, "right_code": failure.code}
    with surroundings(failure, out.parent) as mend:
        if mend is None:
            return row | {"right": "not tried: a disk cannot be mounted here"}
        began = time.monotonic()
        code, said = command(failure, out)
        row |= {"code": code, "seconds": round(time.monotonic() - began)}
        row["in_output"] = failure.reason in said
        if failure.code == 2:
            row["untouched"] = not out.exists()
            right = row["in_output"] and row["untouched"]
        else:
            mend()  # before the report, which is on the disk as well
            reported, _ = command(failure, out, only_report=True)
            study = described(out)
            told = json.dumps([study.get("missing"), study.get("failures")])
            row["in_study"] = failure.reason in told
            page = (out / "report.html").read_text() if reported == 0 else ""
            row["in_report"] = failure.reason in html.unescape(page)
            right = row["in_output"] and row["in_study"] and row["in_report"]
        if not right or code != failure.code:
            print(said[-3000:])
        cause.unlink()
        again = ("--resume", *["--retry-failed"] * failure.retry) if failure.code != 2 else ()
        row["code_mended"], said = command(failure, out, *again, mended=True)
        row["missing"] = len(described(out).get("missing", [None]))
        if row["code_mended"] or row["missing"]:
            print(said[-3000:])
        row["right"] = bool(right and code == failure.code and row["code_mended"] == 0 and row["missing"] == 0)
    return row


def described(out: Path) -> dict[str, Any]:
    """The study's `study.json`; empty where there is none."""
    path = out / "study.json"
    return json.loads(path.read_text()) if path.exists() else {}


def command(
    failure: Failure, out: Path, *more: str, mended: bool = False, only_report: bool = False
) -> tuple[int, str]:
    """Exit code and output of a command, in this process, so that all share one Ray."""
    from click.testing import CliRunner

    from tune_stn.cli import main as tune_stn

    if only_report:
        arguments = ["report", str(out)]
    else:
        arguments = ["compare", "--task", f"failing_tasks:{failure.task}", "--methods", failure.methods, "--seeds", "1"]
        arguments += ["--out", str(out), "--budget", str(failure.budget), *failure.more, *more]
        arguments += (failure.mended or ()) if mended else ()
    done = CliRunner().invoke(tune_stn, arguments)
    trace = "" if done.exception is None or isinstance(done.exception, SystemExit) else f"\n{done.exception!r}"
    return done.exit_code, done.output + trace


# Where a study fails ------------------------------------------------------------------------------------------------


@contextmanager
def surroundings(failure: Failure, folder: Path) -> Iterator[Callable[[], None] | None]:
    """What a failure needs around it: a Ray, and a small disk or a second node.

    Gives a function that takes away what is wrong with them; None if they cannot be had here.
    """
    import ray

    if failure.name == "disk full":
        with shared_ray(), small_disk(folder, "3m") as mounted:
            yield (lambda: make_room(folder)) if mounted else None
    elif failure.name == "node lost for good":
        if ray.is_initialized():
            ray.shutdown()
        with two_nodes(folder) as another:
            yield another
    else:
        with shared_ray():
            yield lambda: None


@contextmanager
def shared_ray() -> Iterator[None]:
    import ray

    from tune_stn.tuning.cluster import _ENVIRONMENT, _start_local

    os.environ |= _ENVIRONMENT
    if not ray.is_initialized():
        _start_local(cpus=2)
    yield


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def two_nodes(folder: Path) -> Iterator[Callable[[], None]]:
    """A head, and a node with what the trials of a study in a folder need, which goes when a trial has reported.

    Gives a function that adds another such node.
    """
    import threading

    import ray
    from ray.cluster_utils import Cluster as Nodes

    from tune_stn.tuning import nodes

    nodes.LOST_S = 20.0
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 2})
    there = [cluster.add_node(num_cpus=1, resources={"far": 1})]
    ray.init(address=cluster.address, log_to_driver=False)

    def lose() -> None:
        while not [path for path in folder.glob("study/state/*/reports.jsonl") if path.stat().st_size]:
            time.sleep(0.1)
        cluster.remove_node(there.pop(), allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    try:
        yield lambda: cluster.add_node(num_cpus=1, resources={"far": 1}) and None
    finally:
        ray.shutdown()
        cluster.shutdown()


def make_room(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)


if __name__ == "__main__":
    main()
