"""The README's tables are those of the committed results."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def test_tables_are_those_of_the_results(run_script: Callable[..., None]) -> None:
    with pytest.raises(SystemExit) as end:
        run_script("readme.py", "--check")
    assert end.value.code == 0, end.value.code
