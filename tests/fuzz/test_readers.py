"""Every reader gives the right answer for a few damaged inputs, or its own error; `make fuzz` reads thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_damaged_inputs_are_refused_in_the_readers_own_words() -> None:
    """In a process of its own, for its memory is limited."""
    command = [sys.executable, str(Path(__file__).parent), "--inputs", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reader ") == 16, done.stdout
