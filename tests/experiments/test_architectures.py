"""The script on architectures runs where transformers and peft are installed, and the page is what the results say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_architectures(run_script: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("transformers", "peft"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    run_script("architectures.py", "--smoke-test")
    table = capsys.readouterr().out
    assert 'model GPT-2, rate batch, responding 15 of 16, left_plain {"net.transformer.wpe": ' in table
    assert "bound 7, equal_at_zero True, equal_merged True" in table
    assert "model ConvNeXt, rate example" in table
    assert "trains_fixed yes, trains_auto yes, trains_progress-ratio yes, trains_stn yes, trains_delta-stn yes" in table
    assert "model GPT-2, size tiny, examples 8, parameters" in table


def test_the_page_is_what_the_results_say(run_script: Callable[..., None]) -> None:
    run_script("architectures_page.py", "--check")  # exits with what is wrong


def test_the_page_says_what_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two rows made by hand."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    script = importlib.import_module("architectures_page")
    plain = {"a.b": "why", "a.c": "why", "d": "other"}
    row = {"model": "M", "rate": "example", "responding": "2 of 5", "left_plain": json.dumps(plain), "bound": 3}
    row |= {"equal_at_zero": "TypeError: no", "equal_merged": True, "trains_auto": "yes", "trains_stn": "ValueError: x"}
    made = {"command": "python c", "commit": "0123456789", "versions": "torch 2", "machine": "m", "threads": 1}
    ratios = {"auto_over_plain": 1.2, "auto_over_fixed": 1.25, "fixed_over_plain": 0.96}
    spread = {f"{name}_quartile_{n}": value + (n - 2) / 10 for name, value in ratios.items() for n in (1, 3)}
    sizes = {"examples": 8, "parameters": 1234, "plain_ms": 5.0, "operations": 1.5, "rounds": 3}
    costs = [{"model": "M", "size": "tiny", **sizes, **ratios, **spread}]
    costs += [{**costs[0], "model": "N", "auto_over_plain": 1.31}]
    page = script.page(pd.DataFrame([{**row, **made}]), pd.DataFrame([{**cost, **made} for cost in costs]))
    assert "| M | each example | 2 of 5 | 3 | no | yes | yes | no |" in page
    assert "- M, stn: ValueError: x" in page
    assert "| M | 2 | why | `a.b` |\n| M | 1 | other | `d` |" in page
    assert (
        "| M | tiny | 8 | 1,234 | 5.0 | 1.20 (1.10 to 1.30) | 1.25 (1.15 to 1.35) | 0.96 (0.86 to 1.06) | 1.50 | 0.80 |"
        in page
    )
    assert (
        "- tiny: the median of `auto` over plain is 1.20 to 1.31, in the middle 1.25; at most 1.3 for 1 of 2." in page
    )
    assert page.count("python c") == 1
