"""What is looked at before a study starts, and what is not because it would take long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tune_stn.data import Splits
from tune_stn.study.checks import check_later_data
from tune_stn.tasks import get_task


@pytest.mark.parametrize(("first_s", "looked_at"), [(0.0, [1, 2, 3]), (0.8, [1, 2]), (1.5, [1]), (2.5, [])])
def test_data_of_later_seeds_are_loaded_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch, first_s: float, looked_at: list[int]
) -> None:
    """Two seconds in all; each takes as long as the first, as far as is known."""
    plain, now, loaded = get_task("digits-mlp"), 0.0, []
    splits = plain.data(0)

    def data(seed: int) -> Splits:
        nonlocal now
        now += first_s
        loaded.append(seed)
        return splits

    clock: Any = lambda: now  # noqa: E731
    monkeypatch.setattr("tune_stn.study.checks.time.monotonic", clock)
    check_later_data(replace(plain, data=data), [1, 2, 3], first_s)
    assert loaded == looked_at
