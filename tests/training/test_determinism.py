"""What a seed, threads and processes mean for a trial's reports; docs/how-to/resume.md says what is promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tune_stn.tasks import get_task
from tune_stn.training import Trainer

pytestmark = pytest.mark.slow  # two threads on busy cores wait for each other

EPOCHS = 2
# Large enough that torch shares its sums out among threads.
SETTINGS = {"epochs": EPOCHS, "warmup_epochs": 0, "train_images": 100, "hidden": 256}
ALONE = """
import json, runpy, sys, torch
torch.set_num_threads(int(sys.argv[1]))
print(json.dumps(runpy.run_path(sys.argv[2])["reports"](0)))
"""


def reports(seed: int) -> list[dict[str, float]]:
    """Of some epochs of a self-tuning trial, but for clock times."""
    trainer = Trainer(get_task("digits-mlp", **SETTINGS), algorithm="stn", seed=seed)
    found = [trainer.run_epoch() for _ in range(EPOCHS)]
    return [{name: value for name, value in one.items() if not name.endswith("_s")} for one in found]


@pytest.fixture(scope="module")
def by_threads() -> Iterator[dict[int, list[dict[str, float]]]]:
    before = torch.get_num_threads()
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found[threads] = reports(0)
    yield found
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_seed_gives_the_same_reports_to_the_last_bit_in_this_process_and_another(
    by_threads: Any, threads: int
) -> None:
    torch.set_num_threads(threads)
    assert reports(0) == by_threads[threads]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # sets have another order there
    command = [sys.executable, "-c", ALONE, str(threads), __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert json.loads(done.stdout) == by_threads[threads], done.stderr


def test_other_threads_give_the_same_but_for_rounding(by_threads: Any) -> None:
    for one, two in zip(by_threads[1], by_threads[2], strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_another_seed_gives_other_reports(by_threads: Any) -> None:
    torch.set_num_threads(1)
    for one, two in zip(by_threads[1], reports(1), strict=True):
        assert one["val_loss"] != two["val_loss"]
        assert one["step"] == two["step"]
