"""The examples of a task of one's own run, and their models know nothing of self-tuning."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    ("script", "responding"),
    [("own_transformer.py", "encoder.layers.1.self_attn: response"), ("own_resnet.py", "stage2.1.conv2: response")],
)
def test_smoke(
    run_script: Callable[..., None], capsys: pytest.CaptureFixture[str], script: str, responding: str
) -> None:
    run_script(script, "--smoke-test")
    output = capsys.readouterr().out
    assert output.count(responding) == 2  # STN and Delta-STN
    assert output.count("epoch 1: validation") == 3
