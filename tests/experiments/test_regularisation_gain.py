"""The script of the regularisation gain runs from end to end at toy size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_stn.data import fashion_mnist
from tune_stn.data.source import DataError
from tune_stn.study.results import load_results


@pytest.mark.ray
def test_smoke(
    cluster: Any, run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        fashion_mnist.find()
    except DataError:
        pytest.skip("needs Fashion-MNIST (Debian: dataset-fashion-mnist)")
    options = ["--methods", "none,auto", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    run_script("regularisation_gain.py", "--smoke-test", *options)
    reports = load_results(tmp_path / "results" / "fashion-mnist-cnn-smoke").reports
    none, auto = (reports[reports["method"] == method] for method in ("none", "auto"))
    assert (none[[c for c in none if c.startswith("hp/dropout")]] == 0).all(axis=None)
    assert auto["cost"].max() > none["cost"].max() - 1e-9
    shown = capsys.readouterr().out
    assert "| none | " in shown
    assert "| auto | " in shown
