"""Runs a script of experiments/ as its command line would, in this process."""

from __future__ import annotations

import pickle
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`run_script("name.py", "--option", ...)`."""

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.syspath_prepend(EXPERIMENTS)  # as for a script: some use others
        runpy.run_path(str(EXPERIMENTS / name), run_name="__main__")

    return run


class OneThread(ThreadPoolExecutor):
    """In the place of a pool of processes, each of which takes seconds to start; it takes what can be pickled, too."""

    def __init__(self, processes: int, context: Any) -> None:
        super().__init__(1)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **settings: Any) -> Future[Any]:
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))  # noqa: S301
        return super().submit(function, *arguments, **settings)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts make their runs in this process; test_start_values is the one that keeps to processes."""
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", OneThread)
