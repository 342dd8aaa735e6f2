"""Which ended runs a resumed study takes up again, and how."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tune_stn.methods import get_method
from tune_stn.study.mend import mending
from tune_stn.study.run import Run
from tune_stn.study.seal import DONE
from tune_stn.tasks import get_task
from tune_stn.tuning.recording.journal import REPORTS

FAILURES = {"b": "RuntimeError: no"}


def run(folder: Path, record: Mapping[str, Any] | None, loss: float = 0.5, **more: Any) -> Run:
    folder.mkdir(parents=True)
    report = {"trial_id": "a", "epoch": 1, "val_loss": loss, "cost_total": 2.0, "status": "running"}
    (folder / REPORTS).write_text(json.dumps(report) + "\n")
    if record is not None:
        plain = {"trials": 1, "cost_total": 2.0, "failures": {}, "hopeless": False}
        (folder / DONE).write_text(json.dumps(plain | record))
    given: dict[str, Any] = {"method": get_method("random"), "budget": 40.0, "trials": None} | more
    return Run(task=get_task("ridge"), config={}, seed=0, folder=folder, **given)


@pytest.mark.parametrize(
    ("record", "loss", "asked", "more", "anew"),
    [
        (None, 0.5, False, {}, None),  # it has not ended
        ({}, 0.5, True, {}, None),
        ({}, math.nan, False, {}, True),
        ({}, math.inf, False, {}, True),
        ({"failures": FAILURES}, math.nan, False, {}, True),
        ({"failures": FAILURES, "hopeless": True}, 0.5, False, {}, True),
        ({"failures": FAILURES}, 0.5, False, {}, None),
        ({"failures": FAILURES}, 0.5, True, {}, False),
        ({"failures": FAILURES}, 0.5, True, {"method": get_method("hyperband")}, True),
        ({"failures": FAILURES}, 0.5, True, {"budget": 2.0}, None),  # it has no budget left
        ({"failures": FAILURES}, 0.5, True, {"budget": math.inf, "trials": 1}, False),
    ],
)
def test_how_a_run_is_taken_up_again(
    tmp_path: Path, record: Mapping[str, Any] | None, loss: float, asked: bool, more: Mapping[str, Any], anew: bool
) -> None:
    found = mending(run(tmp_path / "run", record, loss, **more), retry_failed=asked)
    assert (found.anew if found is not None else None) == anew
    if asked is False and found is not None:
        assert mending(run(tmp_path / "same", record, loss, **more), retry_failed=True) == found


def test_what_is_made_from_a_run_that_was_taken_up_is_made_anew(tmp_path: Path) -> None:
    auto = run(tmp_path / "auto", {}, method=get_method("auto"))
    other = run(tmp_path / "other", {}, method=get_method("auto"))
    control = run(tmp_path / "control", {}, method=get_method("replayed"), followed=auto)
    assert mending(control, retry_failed=True, taken_up=[other]) is None
    found = mending(control, retry_failed=False, taken_up=[other, auto])
    assert found is not None
    assert found.anew
