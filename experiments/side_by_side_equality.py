"""Whether a study's tables are equal to the last bit, however many runs go side by side and on however many nodes.

A comparison of eight methods on a small network of the digits, each time on a cluster of its own: the nodes are
processes of this machine with addresses of their own, which are told how many CPUs they have. Reports, schedule and
incumbents are compared with those of one node and one run at a time, but for clock times and Tune's names of the
trials, which are new each time. Writes a row a study to experiments/results/side_by_side_equality/studies.csv, with the
nodes that trials were on, as their models noted them when they were made.

    python experiments/side_by_side_equality.py              # four minutes on 2 cores
    python experiments/side_by_side_equality.py --smoke-test
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import same, tables
from provenance import provenance

if TYPE_CHECKING:
    from torch import nn

    from tune_stn import Task

METHODS = "auto,stn,random,tpe,hyperband,asha,pbt,replayed"
BUDGET = 20
STUDIES = [([8], 1), ([8], 2), ([8], 8), ([3, 3, 2], 1), ([3, 3, 2], 8)]  # CPUs of each node; runs side by side
SMOKE = {"methods": "fixed,random", "budget": 4, "studies": [([2], 1), ([1, 1], 2)]}
NOTES = "SIDE_BY_SIDE_EQUALITY_NOTES"  # a file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "side_by_side_equality")
    parser.add_argument("--study", help=argparse.SUPPRESS)  # the process that does one: its arguments as JSON
    arguments = parser.parse_args()
    if arguments.study is not None:
        study(**json.loads(arguments.study))
        return
    how: dict[str, Any] = {"methods": METHODS, "budget": BUDGET, "studies": STUDIES}
    how |= SMOKE if arguments.smoke_test else {}
    import pandas as pd

    rows: list[dict[str, Any]] = []
    expected: dict[str, pd.DataFrame] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (nodes, lanes) in enumerate(how["studies"]):
            out, notes = Path(scratch) / str(number), Path(scratch) / f"{number}.notes"
            path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
            one = {"out": str(out), "nodes": nodes, "lanes": lanes, "methods": how["methods"], "budget": how["budget"]}
            command = [sys.executable, __file__, "--study", json.dumps(one | {"seeds": arguments.seeds})]
            subprocess.run(command, check=True, env={**os.environ, NOTES: str(notes), "PYTHONPATH": path})
            where = set(notes.read_text().split())
            found = tables("cli", out)
            expected = expected or found
            rows.append(
                {
                    **{"nodes": len(nodes), "cpus_of_nodes": " ".join(map(str, nodes)), "runs_side_by_side": lanes},
                    **{"methods": how["methods"], "seeds": arguments.seeds, "nodes_of_trials": len(where)},
                    **{f"rows_{name}": len(table) for name, table in found.items()},
                    **{f"equal_{name}": same(found[name], expected[name]) for name in expected},
                }
            )
            rows[-1]["equal"] = all(rows[-1][f"equal_{name}"] for name in expected)
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            arguments.results.mkdir(parents=True, exist_ok=True)
            table = pd.DataFrame(rows).assign(**provenance("ray"), cpus=os.cpu_count())
            table.to_csv(arguments.results / "studies.csv", index=False)  # after each, for they take their time
    if not table["equal"].all():
        sys.exit(1)


def study(out: str, nodes: list[int], lanes: int, methods: str, budget: int, seeds: int) -> None:
    """Run the study on a cluster of such nodes."""
    from tune_stn.tuning.cluster import _ENVIRONMENT, Cluster, _environment
    from tune_stn.tuning.fork_server import fork_server
    from tune_stn.tuning.token import protect

    protect()  # before Ray is imported, which reads it then
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from tune_stn import compare

    # Workers are started as on a local Ray, by forks of one process: the nodes are all on this machine.
    with fork_server() as python, _environment(_ENVIRONMENT):
        cluster = Nodes()
        try:
            cluster.add_node(node_ip_address="127.0.0.2", num_cpus=0, include_dashboard=False)
            for number, cpus in enumerate(nodes, start=3):
                cluster.add_node(node_ip_address=f"127.0.0.{number}", num_cpus=cpus)
            ray.init(cluster.address, runtime_env={"py_executable": python}, log_to_driver=False)
            where = Cluster(max_concurrent=lanes)
            task = "side_by_side_equality:noted"
            compare(task, methods.split(","), budget=budget, seeds=seeds, out=out, cluster=where, rehearsal=False)
            ray.shutdown()
        finally:
            cluster.shutdown()


def noted() -> Task:
    """The digits, a small network that notes the node on which it is made."""
    import ray

    from tune_stn import get_task

    plain = get_task("digits-mlp", train_images=100, hidden=16, epochs=6, warmup_epochs=1, hyper_lr=0.1)

    def model() -> nn.Module:
        with open(os.environ[NOTES], "a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        return plain.model()

    return replace(plain, name="digits-mlp", model=model)


if __name__ == "__main__":
    main()
