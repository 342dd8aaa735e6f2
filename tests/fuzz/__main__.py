"""Damaged inputs for every reader, each a right answer or the reader's own error; see CONTRIBUTING.md.

    python tests/fuzz --inputs 1000 --out experiments/results/fuzz/readers.csv

Each reader has a process of its own, with a gigabyte beyond what its imports take and ten seconds an input. Exit code 1
if an outcome is none of `FINE`; what was wrong is on stderr, with the number of the input, which `--only` and `--first`
make again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # the others reserve at once what they may need
os.environ.setdefault("OMP_NUM_THREADS", "1")

from readers import READERS

from tune_stn.tasks.own_code import is_refusal

FINE = ("right", "accepted", "refused")
"""As the sound input; another answer where no checksum could tell; the reader's own error."""
MEMORY, SECONDS = 2**30, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="damaged ones for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", nargs="+", default=[*READERS], help="names of readers; default all")
    parser.add_argument("--out", type=Path, help="a CSV file for the counts; keeps those of other readers")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        began = time.monotonic()
        counts, peak = count(name, arguments.first, arguments.inputs, arguments.seed)
        row = {"reader": name, "inputs": arguments.inputs, **{outcome: counts.pop(outcome, 0) for outcome in FINE}}
        row |= {
            "wrong": counts.pop("wrong", 0),
            "raw error": counts.pop("raw", 0),
            "executed": counts.pop("executed", 0),
        }
        row |= {"too slow": counts.pop("SIGALRM", 0), "crash": sum(counts.values())}
        row |= {"peak MB": round(peak / 1e6), "seconds": round(time.monotonic() - began, 1)}
        rows.append(row)
        print(
            "  ".join(f"{key} {value}" for key, value in row.items() if value or key in ("reader", *FINE)), flush=True
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_counts(arguments.out, rows)
    bad = sum(row["inputs"] - sum(row[outcome] for outcome in FINE) for row in rows)
    return 1 if bad else 0


def write_counts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the counts of some readers into a file, which keeps those of the others."""
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        with path.open(newline="") as file:
            known = {row["reader"]: row for row in csv.DictReader(file)}
    known |= {row["reader"]: row for row in rows}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(known[name] for name in READERS if name in known)


def count(name: str, first: int, inputs: int, seed: int) -> tuple[Counter[str], int]:
    """Outcomes of a reader's inputs, and the most memory that they took beyond the imports, in bytes."""
    counts: Counter[str] = Counter()
    done, peak = 0, 0
    while done < inputs:  # anew after an input that ended the process
        read_end, write_end = os.pipe()
        if not (child := os.fork()):
            os.close(read_end)
            work(name, range(first + done, first + inputs), seed, os.fdopen(write_end, "w", buffering=1))
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as lines:
            for line in lines:
                found = json.loads(line)
                peak = max(peak, found["peak"])
                counts[found["outcome"]] += 1
                if found["outcome"] not in FINE:
                    print(f"{name}, input {first + done}: {found['outcome']}: {found['words']}", file=sys.stderr)
                done += 1
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError(f"{name}: the harness itself failed, see above")
        if done < inputs:
            how = signal.Signals(os.WTERMSIG(status)).name
            print(f"{name}, input {first + done}: {how}", file=sys.stderr)
            counts[how] += 1
            done += 1
    return counts, peak


def work(name: str, numbers: range, seed: int, results: Any) -> None:
    """Read inputs, within the limits, and write a line about each."""
    before = _memory("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (before + MEMORY, before + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    start = _memory("VmHWM")
    with tempfile.TemporaryDirectory() as scratch:
        folder, mark = Path(scratch) / "input", Path(scratch) / "executed"
        folder.mkdir()
        reader = READERS[name](folder)
        right = reader.read(reader.write(None, mark))
        for number in numbers:
            draw = hashlib.sha256(f"{seed} {name} {number}".encode()).digest()
            given = reader.write(random.Random(draw), mark)
            signal.alarm(SECONDS)
            words = ""
            try:
                found = reader.read(given)
                outcome = "right" if found == right else "wrong" if reader.exact else "accepted"
            except Exception as error:  # noqa: BLE001 (what comes is the question)
                own = is_refusal(error) or type(error).__name__ == "Refused"
                outcome = "refused" if own else "wrong" if isinstance(error, AssertionError) else "raw"
                words = f"{type(error).__name__}: {error}"
            signal.alarm(0)
            if mark.exists():
                outcome = "executed"
                shutil.rmtree(mark)
            line = {"outcome": outcome, "words": words[:400], "peak": _memory("VmHWM") - start}
            results.write(json.dumps(line) + "\n")


def _memory(field: str) -> int:
    """Of this process, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
