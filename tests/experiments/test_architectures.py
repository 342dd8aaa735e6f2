"""The script on architectures runs where transformers and peft are installed."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def test_architectures(run_script: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("transformers", "peft"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    run_script("architectures.py", "--smoke-test")
    table = capsys.readouterr().out
    assert "model GPT-2, rate batch, responding 15 of 16, bound 7, equal_at_zero True, equal_merged True" in table
    assert "model ConvNeXt, rate example" in table
    assert "trains_fixed yes, trains_auto yes, trains_stn yes, trains_delta-stn yes" in table
