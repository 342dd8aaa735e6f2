"""What is refused before anything of a study starts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from tune_stn.checked import COUNT, FINITE, NOTHING, TEXT, Shape, parse_json, read_whole
from tune_stn.methods import Method
from tune_stn.study.arguments import check_directory
from tune_stn.study.begun import SHARED, begun_runs, begun_with, difference, read_begun
from tune_stn.study.state import foreign_path, state_folder
from tune_stn.tasks.arguments import check_splits
from tune_stn.tasks.own_code import own_code
from tune_stn.tasks.task import Task
from tune_stn.training.rules import get_rule
from tune_stn.tuning.storage import Storage

_COMPARED: Shape = {
    **{"schema_version": COUNT, "task": TEXT, "methods": [TEXT], "seeds": [COUNT], "budget": (FINITE, NOTHING)},
    "settings": {},
}
LATER_DATA_S = 2.0  # for loading data that only later runs of a study use


def check_hyper_steps(task: Task, method: Method, steps_per_epoch: int, budget: float) -> None:
    """Refuse a run that is to tune and is over before its first hyper-step; a control that has none on purpose is none.

    An epoch costs 1 at least, so there are no more of them than the budget says.

    Raises:
        ValueError: it is; the message says why.
    """
    epochs = min(task.training.epochs, math.ceil(budget)) if math.isfinite(budget) else task.training.epochs
    reason = replace(task.training, epochs=epochs).why_no_hyper_step(steps_per_epoch)
    if not reason or not get_rule(method.algorithm).tunes or not method.hyper_steps:
        return
    more = "more epochs=" if epochs == task.training.epochs else f"more than budget={budget:g}"
    raise ValueError(
        f"{method.name} would tune nothing on task {task.name!r}: {reason}; give {more}, or a smaller warmup_epochs=, "
        "train_steps= or batch_size="
    )


def check_later_data(task: Task, seeds: Sequence[int], first_s: float) -> None:
    """Load the data of further seeds as well, unless that takes long: what is not looked at, a trial finds out.

    Args:
        task: The task, with its data.
        seeds: But for the one whose data were loaded.
        first_s: Seconds that those took.

    Raises:
        ValueError: At a seed, they cannot be loaded, or are no splits.
    """
    began, longest = time.monotonic(), first_s
    for seed in seeds:
        before = time.monotonic()
        if before - began + longest > LATER_DATA_S:
            return
        when = f" at seed {seed}"
        with own_code("the data", task.name, partial(str, when)):
            check_splits(task.name, task.data(seed), when)
        longest = max(longest, time.monotonic() - before)


def make_directory(out: Path) -> None:
    """Make the directory of a study. Raises ValueError saying what is wrong."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={out}: cannot be made a directory ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise ValueError(f"out={out}: not writable")


def check_same_study(out: Path, study: Mapping[str, Any], resume: bool) -> str:
    """Refuse a directory that holds another study, or any if it is not to be resumed.

    A study whose `study.json` is missing or damaged is the same if each of its runs was begun by these arguments.

    Args:
        out: Directory of the study.
        study: What `study.json` is to say.
        resume: Whether a study that is there is gone on with.

    Returns:
        What is wrong with `study.json`, where it can be written anew; empty where nothing is.

    Raises:
        ValueError: The directory is refused; the message says why.
    """
    check_directory(out, resume=resume, retry_failed=False)
    before, lost = _read_before(out / "study.json")
    runs = begun_runs(out)
    if lost and not runs:
        if (out / "study.json").exists():
            raise ValueError(f"{lost}; no run of a study is there: remove the file, or choose another out=")
        return ""
    if not lost:
        before.setdefault("slots_per_run", study["slots_per_run"])  # which earlier versions do not say
        for key in (*SHARED, "method_settings"):
            if (before.get(key) or None) != (study[key] or None):  # earlier versions wrote no method_settings
                raise ValueError(f"resume=True: {out} was begun with {key} {before.get(key)!r}, not {study[key]!r}")
    wanted = {
        state_folder(out, method, seed): begun_with(study, method, seed)
        for method in study["methods"]
        for seed in study["seeds"]
    }
    advice = "restore study.json from a copy, or begin anew in another out="
    for folder in runs:
        try:
            begun = read_begun(folder)
        except ValueError as error:
            if lost:
                raise ValueError(f"resume=True: {lost}, and {error}: {advice}") from None
            continue  # study.json says it
        if folder in wanted and (other := difference(begun, wanted[folder])):
            elsewhere = "" if lost else " (it is of another study: remove it, and its run begins anew)"
            raise ValueError(f"resume=True: {folder} was begun with {other}{elsewhere}")
        if lost and folder not in wanted:
            raise ValueError(
                f"resume=True: {lost}, and these arguments do not ask for the run in {folder}: give all methods and "
                "seeds that the study was begun with, or remove it"
            )
    return lost


def _read_before(path: Path) -> tuple[dict[str, Any], str]:
    """What `study.json` says, or what is wrong with it."""
    try:
        before = parse_json(read_whole(path), _COMPARED)
    except FileNotFoundError:
        return {}, f"{path} is missing"
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); choose another out=") from None
    except ValueError as error:
        return {}, f"{path} is damaged ({error})"
    return before, ""


def check_owner(out: Path, storage: Storage | None) -> None:
    """Refuse to resume what somebody else may have written: see SECURITY.md."""
    local = storage is not None and isinstance(storage.filesystem, LocalFileSystem)
    path = foreign_path(out, Path(storage.path) if storage is not None and local else None)
    if path is not None:
        try:
            owner = path.owner()
        except KeyError:
            owner = f"user {path.stat().st_uid}"
        raise ValueError(
            f"resume=True: {path} belongs to {owner}, and to resume is to run what Ray Tune's state there says; a copy "
            "of your own can be resumed, if you trust it"
        )
