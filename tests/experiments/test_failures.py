"""The tasks of the script of failures fail while the cause is there, in trials alone, and then no more."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tune_stn.tasks import Task
from tune_stn.training import Trainer

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, Any]]:
    """`tasks(pid)`: the module of the tasks, for a driver of that process."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    script = importlib.import_module("failures")

    def make(driver: int) -> dict[str, Any]:
        path = tmp_path / "failing_tasks.py"
        path.write_text(script.TASKS.format(cause=str(tmp_path / "cause"), driver=driver))
        return runpy.run_path(str(path))

    return make


def trained(task: Task, **hp: float) -> list[float]:
    """Validation losses, as of a trial; of a task that kills its process or eats its memory, see the script."""
    trainer = Trainer(replace(task, training=replace(task.training, restarts=0)), algorithm="fixed", hp=hp)
    losses = []
    while not trainer.finished:
        losses.append(trainer.run_epoch()["val_loss"])
    return losses


@pytest.mark.parametrize(
    ("name", "hp", "message"),
    [
        ("in_set_up", {}, "no data today"),
        ("user_exception", {}, "my loss fails in epoch 3"),
        ("one_method", {"dropout_input": 0.5}, "only the start values work"),
    ],
)
def test_a_trial_fails_while_the_cause_is_there(
    tasks: Callable[[int], dict[str, Any]], tmp_path: Path, name: str, hp: dict[str, float], message: str
) -> None:
    (tmp_path / "cause").touch()
    theirs, mine = tasks(os.getpid() + 1)[name](), tasks(os.getpid())[name]()
    with pytest.raises(RuntimeError, match=message):
        trained(theirs, **hp)
    if name == "one_method":
        trained(theirs)
    expected = trained(mine, **hp)
    (tmp_path / "cause").unlink()
    assert trained(theirs, **hp) == expected
    assert len(expected) == 4


def test_a_loss_that_is_no_number(tasks: Callable[[int], dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "cause").touch()
    assert trained(tasks(0)["not_a_number"]()) == [float("inf")]


def test_ten_ways_each_with_a_task(tasks: Callable[[int], dict[str, Any]]) -> None:
    failures = sys.modules["failures"].FAILURES
    assert len({failure.name for failure in failures}) == 10
    assert all(isinstance(tasks(0)[failure.task](), Task) for failure in failures)
