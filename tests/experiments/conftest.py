"""Runs a script of experiments/ as its command line would, in this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

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
