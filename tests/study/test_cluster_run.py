"""A comparison on a real cluster of three nodes, one of which is killed in the middle of it.

The nodes are processes of this machine with addresses of their own. As a script, this file starts them and the command,
and kills the node; the tests run it so, for they have another Ray in their process.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray import cloudpickle
from ray.cluster_utils import Cluster as Nodes
from torch import nn

from tune_stn import compare, load_results
from tune_stn.methods import get_method
from tune_stn.study.run import Run, execute
from tune_stn.tasks import get_task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recording.journal import REPORTS, read_reports
from tune_stn.tuning.trainable import STNTrainable

TASK = """
import time
from dataclasses import replace
import ray
from torch import nn
from tune_stn.tasks import get_task

def slow(outputs, targets):
    time.sleep(0.02)  # so that there is a middle to be killed in
    return (outputs.argmax(-1) == targets).float().mean()

def make(*, notes, together=1):
    plain = get_task("digits-mlp", train_images=100, hidden=16)
    training = replace(plain.training, epochs=40, warmup_epochs=0, eval_batch_size=2000, response="gate")

    def network() -> nn.Module:  # made when a trial starts, and when it starts again
        with open(notes, "a") as file:
            file.write(ray.get_runtime_context().get_node_id() + "\\n")
        until = time.monotonic() + 60
        while len(open(notes).readlines()) < together:  # the first two at a time, however slow one of them starts
            assert time.monotonic() < until, "no other trial was started"
            time.sleep(0.01)
        return plain.model()

    return replace(plain, name="three-nodes", model=network, metrics={"accuracy": slow}, training=training)
"""
MODULE = "task_of_three_nodes"
BUDGET, SEEDS = 100.0, 2  # a run on each of two nodes: a trial and a part of another
KILLED_AFTER = 9  # reports of a run, long before its first trial ends; the checkpoints are those of even epochs
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "20000",  # of a node that is slow; a killed one answers nothing at once
    "RAY_health_check_failure_threshold": "3",
}


def main(folder: Path) -> None:
    """Run the comparison on a cluster; prints what was killed, and where trials ran before and after."""
    cluster = Nodes()
    cluster.add_node(node_ip_address="127.0.0.2", num_cpus=0, include_dashboard=False)
    nodes = [cluster.add_node(node_ip_address=f"127.0.0.{last}", num_cpus=1) for last in (3, 4)]
    notes = folder / "notes"
    reports = [folder / "out" / "state" / f"stn-seed{seed}" / "reports.jsonl" for seed in range(SEEDS)]
    tune_stn = [sys.executable, "-c", "from tune_stn.cli import main; main()"]
    command = ["compare", "--task", f"{MODULE}:make", "--methods", "stn", "--budget", str(BUDGET)]
    command += ["--seeds", str(SEEDS)]
    where = ["--address", cluster.address, "--working-dir", str(folder / "modules"), "--out", str(folder / "out")]
    process = subprocess.Popen(
        [*tune_stn, *command, *where, "--set", f"notes={notes}", "--set", "together=2", "--no-rehearsal"],
        cwd=folder, stdout=sys.stderr, stderr=sys.stderr,
    )  # fmt: skip
    try:
        while not all(one.exists() and one.read_bytes().count(b"\n") >= KILLED_AFTER for one in reports):
            assert process.poll() is None, "the command ended early"
            time.sleep(0.005)
        before = notes.read_text().split()
        (hit,) = (node for node in nodes if node.node_id == before[-1])
        cluster.remove_node(hit, allow_graceful=False)
        assert process.wait() == 0
    finally:
        process.kill()
        cluster.shutdown()
    after = notes.read_text().split()[len(before) :]
    print(json.dumps({"killed": hit.node_id, "before": before, "after": after}))


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Fail unless both are equal to the last bit; trials by number, for Tune names each anew."""
    pd.testing.assert_frame_equal(numbered(found), numbered(expected), check_exact=True)


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(frame["trial_id"]))}
    return frame.assign(trial_id=frame["trial_id"].map(numbers)).reset_index(drop=True)


@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("undrawn")
def test_a_killed_node_changes_no_schedule(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{MODULE}.py").write_text(TASK)
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text(secrets.token_hex(32))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    script = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | QUICK_TO_NOTICE | token,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        monkeypatch.syspath_prepend(modules)
        task = get_task(f"{MODULE}:make", notes=str(tmp_path / "more"))
        cloudpickle.register_pickle_by_value(sys.modules[MODULE])  # the workers of the tests' Ray live elsewhere
        whole = compare(
            task, ["stn"], budget=BUDGET, seeds=SEEDS, out=tmp_path / "whole", cluster=cluster, rehearsal=False
        )
        output, errors = script.communicate(timeout=300)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[MODULE])
        script.kill()
    assert script.returncode == 0, errors
    told = json.loads(output)
    found = load_results(tmp_path / "out")
    assert found.study["missing"] == []
    assert found.study["cluster"]["nodes"] == 3
    assert found.study["cluster"]["slots"] == 2

    # Each run was on a node; the one whose node was killed went on where the other was.
    assert len(told["before"]) == len(set(told["before"])) == 2
    assert len(told["after"]) == 3  # the trial that was cut off, and the second one of each run
    assert {told["killed"], *told["after"]} == set(told["before"])
    assert told["killed"] not in told["after"]

    assert (found.schedule.groupby("seed")["trial_id"].nunique() == 2).all()
    assert_same(found.schedule, whole.schedule)
    assert not found.reports.duplicated(["seed", "trial_id", "report_index"]).any()
    clocks = ["wall_time_s", "device_time_s"]
    assert_same(found.reports.drop(columns=clocks), whole.reports.drop(columns=clocks))

    # One bit of one value would be seen.
    changed = whole.schedule.copy()
    changed.loc[len(changed) // 2, "value"] = np.nextafter(changed["value"].iloc[len(changed) // 2], 1)
    with pytest.raises(AssertionError):
        assert_same(found.schedule, changed)


@pytest.mark.ray
def test_checkpoints_on_a_storage_that_is_no_disk(cluster: Cluster, tmp_path: Path) -> None:
    """Killed once; against the same trial without Ray. Two runs of one name share the storage."""
    settings = {"train_images": 100, "hidden": 16, "epochs": 12, "warmup_epochs": 0, "response": "gate"}
    pids = tmp_path / "pids"
    plain = get_task("digits-mlp", **settings)

    def network() -> nn.Module:
        with open(pids, "a") as file:
            file.write(f"{os.getpid()}\n")
        return plain.model()

    def kill(report: Mapping[str, Any], cost_total: float) -> None:
        if report["epoch"] == 7 and len(pids.read_text().split()) == 1:
            os.kill(int(pids.read_text()), signal.SIGKILL)

    task = replace(plain, model=network)
    bucket = replace(cluster, storage_path=f"fsspec+file://{tmp_path}/bucket")
    for place in ("one", "other"):
        run = Run(
            task=task,
            config={"task": task},
            method=get_method("stn"),
            seed=0,
            budget=math.inf,
            trials=1,
            folder=tmp_path / place / "study" / "state" / "stn-seed0",
        )
        assert execute(run, bucket, kill)["failures"] == {}
        assert [report["epoch"] for report in read_reports(run.folder / REPORTS)] == list(range(1, 13))
    assert len(pids.read_text().split()) == 3
    assert not (run.folder / "tune").exists()
    names = [path.name for path in (tmp_path / "bucket").iterdir()]
    assert len(names) == 2
    assert all(name.startswith("study-stn-seed0-") for name in names)

    alone = STNTrainable({"task": "digits-mlp", **settings})
    for _ in range(12):
        alone.step()
    alone.save_checkpoint(str(tmp_path))
    columns = ["step", "epoch", "hp", "value", "raw", "scale", "source"]
    found, expected = (pd.read_parquet(folder / "schedule.parquet") for folder in (run.folder, tmp_path))
    pd.testing.assert_frame_equal(found[columns].reset_index(drop=True), expected[columns], check_exact=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
