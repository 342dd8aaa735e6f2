"""The step-cost script runs, and writes what the results page's table is made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_stn.data import fashion_mnist
from tune_stn.data.source import DataError


def test_smoke(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        fashion_mnist.find()
    except DataError:
        pytest.skip("needs Fashion-MNIST (Debian: dataset-fashion-mnist)")
    networks = ("mlp", "transformer")
    run_script("step_cost.py", "--smoke-test", "--threads", "1", "--models", *networks, "--results", str(tmp_path))
    table = pd.read_csv(tmp_path / "cpu.csv")
    assert set(table["step"]) == {"STN step", "Delta-STN cycle", "hyper-step"}
    assert set(table["response"].astype(str)) == {"full", "8", "gate", "auto"}
    assert set(table["model"]) == set(networks)
    assert (table[["over_plain", "memory_over_plain", "plain_memory_mib"]] > 0).all(axis=None)
    # Operations do not depend on the machine: a gate-only STN step is a plain step but for its gates.
    gate = table[(table["step"] == "STN step") & (table["response"] == "gate")]
    assert gate["operations_over_plain"].between(1.0, 1.1).all()
    assert "over_plain" in capsys.readouterr().out
