"""A comparison on a real cluster of three nodes, one of which is killed in the middle of it.

The nodes are processes of this machine with addresses of their own. As a script, this file starts them and the command,
and kills the node; the tests run it so, for they have another Ray in their process.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

TASK = """
import time
from dataclasses import replace
import ray
from torch import nn
from tune_stn.tasks import get_task

def slow(outputs, targets):
    time.sleep(0.004)  # so that there is a middle to be killed in
    return (outputs.argmax(-1) == targets).float().mean()

def make(*, notes):
    plain = get_task("digits-mlp", train_images=100, hidden=16)
    training = replace(plain.training, epochs=40, warmup_epochs=0, eval_batch_size=2000, response="gate")

    def network() -> nn.Module:  # made when a trial starts, and when it starts again
        with open(notes, "a") as file:
            file.write(ray.get_runtime_context().get_node_id() + "\\n")
        return plain.model()

    return replace(plain, name="three-nodes", model=network, metrics={"accuracy": slow}, training=training)
"""
MODULE = "task_of_three_nodes"
METHODS, BUDGET = "random,stn", 100.0  # 2.5 trials of random search, both nodes at work; a trial of STN and a half
KILLED_AFTER = 25  # reports of STN; the checkpoints are those of even epochs
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def main(folder: Path) -> None:
    """Run the comparison on a cluster; prints what was killed, and where trials ran before and after."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(node_ip_address="127.0.0.2", num_cpus=0, include_dashboard=False)
    nodes = [cluster.add_node(node_ip_address=f"127.0.0.{last}", num_cpus=1) for last in (3, 4)]
    notes, reports = folder / "notes", folder / "out" / "state" / "stn-seed0" / "reports.jsonl"
    tune_stn = [sys.executable, "-c", "from tune_stn.cli import main; main()"]
    command = ["compare", "--task", f"{MODULE}:make", "--methods", METHODS, "--budget", str(BUDGET), "--seeds", "1"]
    where = ["--address", cluster.address, "--working-dir", str(folder / "modules"), "--out", str(folder / "out")]
    process = subprocess.Popen(
        [*tune_stn, *command, *where, "--set", f"notes={notes}"], cwd=folder, stdout=sys.stderr, stderr=sys.stderr
    )
    try:
        while not (reports.exists() and reports.read_bytes().count(b"\n") >= KILLED_AFTER):
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


def same_schedules(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Fail unless both are equal to the last bit; trials by number, for Tune names each anew."""
    for frame in (found, expected):
        assert len(frame)
    pd.testing.assert_frame_equal(numbered(found), numbered(expected), check_exact=True)


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(frame["trial_id"]))}
    return frame.assign(trial_id=frame["trial_id"].map(numbers)).reset_index(drop=True)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_killed_node_changes_no_schedule(cluster: Any, tmp_path: Path) -> None:
    from tune_stn import compare, load_results

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
    output, errors = script.communicate(timeout=300)
    assert script.returncode == 0, errors
    told = json.loads(output)
    found = load_results(tmp_path / "out")
    assert found.study["missing"] == []
    assert found.study["cluster"]["nodes"] == 3
    assert found.study["cluster"]["slots"] == 2

    # Random search had trials on both nodes at a time; the first of STN went on where the other node was.
    assert len(set(told["before"])) == 2
    assert len(told["before"]) == 4
    assert set(told["after"]) == set(told["before"]) - {told["killed"]}
    assert len(told["after"]) == 2

    whole = compare(
        f"{MODULE}:make",
        ["stn"],
        budget=BUDGET,
        seeds=1,
        out=tmp_path / "whole",
        settings={"notes": str(tmp_path / "more")},
        cluster=cluster,
    )
    schedule = found.schedule[found.schedule["method"] == "stn"]
    assert schedule["trial_id"].nunique() == 2
    same_schedules(schedule, whole.schedule)
    reports = found.reports[found.reports["method"] == "stn"]
    assert not reports.duplicated(["trial_id", "report_index"]).any()
    clocks = ["wall_time_s", "device_time_s"]
    same_schedules(reports.drop(columns=clocks), whole.reports.drop(columns=clocks))

    # One bit of one value would be seen.
    changed = whole.schedule.copy()
    changed.loc[len(changed) // 2, "value"] = np.nextafter(changed["value"].iloc[len(changed) // 2], 1)
    with pytest.raises(AssertionError):
        same_schedules(schedule, changed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
