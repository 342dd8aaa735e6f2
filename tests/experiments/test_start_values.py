"""The study of start values runs, and its raw input is the one of the papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd


def test_smoke(run_script: Callable[..., None], tmp_path: Path) -> None:
    run_script("start_values.py", "--smoke-test", "--processes", "1", "--results", str(tmp_path))
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert set(runs["input"]) == {"raw", "from the start", "offset from the mean"}
    assert len(runs) == 10
    assert not runs["diverged"].any()
