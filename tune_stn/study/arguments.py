"""What of a study's arguments can be checked at once: needs neither torch nor Ray, which take seconds to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tune_stn.methods import Method, get_method, in_order
from tune_stn.study.begun import begun_runs

MOST_SEEDS = 10_000


def check_comparison(
    methods: Sequence[str], budget: float, seeds: int | Sequence[int]
) -> tuple[list[Method], list[int]]:
    """The methods and seeds of a comparison.

    Args:
        methods: Names of the methods.
        budget: Cost of each run, in plain-epoch equivalents.
        seeds: Number of seeds (0, 1, ...), or the seeds themselves.

    Raises:
        ValueError: One of them is not accepted.
    """
    if not (budget > 0 and math.isfinite(budget)):
        raise ValueError(f"budget={budget:g}: accepted is a number of 1 or more, in plain-epoch equivalents")
    if budget < 1:
        raise ValueError(f"budget={budget:g}: not even one epoch of one trial, which costs 1; accepted is 1 or more")
    if not methods:
        raise ValueError("methods=[]: name at least one method")
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods={list(methods)}: a method is named twice")
    chosen = [get_method(name) for name in methods]
    in_order(chosen)
    if (seeds if isinstance(seeds, int) else len(seeds)) > MOST_SEEDS:
        raise ValueError(f"seeds={seeds}: accepted are at most {MOST_SEEDS} seeds, for each is a run of each method")
    wanted = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not wanted or len(set(wanted)) < len(wanted) or min(wanted) < 0:
        raise ValueError(f"seeds={seeds}: accepted is a number of seeds, 1 or more, or different seeds of 0 or more")
    return chosen, wanted


def check_directory(out: Path, *, resume: bool, retry_failed: bool) -> None:
    """Refuse a directory that holds a study already, or cannot be one; nothing is made.

    Args:
        out: Directory of the study.
        resume: Whether a study that is there is gone on with.
        retry_failed: Whether its failed trials are run again.

    Raises:
        ValueError: It cannot be used; the message says why.
    """
    if retry_failed and not resume:
        raise ValueError("retry_failed=True: only with resume=True, which says that there is a study to go on with")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out}: cannot be made a directory (File exists)")
    if resume:
        return
    if (out / "study.json").exists():
        raise ValueError(f"out={out}: holds a study already; add resume=True to go on with it, or choose another")
    if begun_runs(out):
        raise ValueError(
            f"out={out}: holds runs of a study, and no study.json; add resume=True to go on with them by the arguments "
            "that they were begun with, or choose another"
        )
