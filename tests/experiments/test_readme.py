"""The pages' tables are those of the committed results."""

from __future__ import annotations

from collections.abc import Callable


def test_tables_are_those_of_the_results(run_script: Callable[..., None]) -> None:
    run_script("readme.py", "--check")  # exits with what is wrong
