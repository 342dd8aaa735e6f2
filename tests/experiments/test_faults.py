"""The script of faults runs, and would see a report lost, doubled or changed, and a refusal that says nothing."""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.own_ray
@pytest.mark.timeout(300)
def test_smoke(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a round that is there is not done again."""
    for _ in range(2):
        run_script("faults.py", "--smoke-test", "--kinds", "sigterm", "--results", str(tmp_path))
        (row,) = pd.read_csv(tmp_path / "rounds.csv").to_dict("records")
        assert (row["kind"], row["outcome"]) == ("sigterm", "equal")
    assert "1 of 1 rounds ended with the undisturbed tables" in capsys.readouterr().out


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return runpy.run_path(str(EXPERIMENTS / "faults.py"))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("action", ["cut", "flip", "delete"])
def test_damage_is_damage(script: dict[str, Any], tmp_path: Path, action: str, seed: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    script["damage"](path, action, random.Random(seed))
    if action == "delete":
        assert not path.exists()
    else:
        data = path.read_bytes()
        assert data != b"abc"
        assert len(data) == 3 if action == "flip" else b"abc".startswith(data)


@pytest.mark.parametrize(
    ("code", "words", "outcome"),
    [
        ("hang", "", "hang"),
        (1, "Traceback (most recent call last):\nKeyError: 'epoch'", "raw"),
        (2, "tune-stn: study/state/auto-seed0/reports.jsonl, line 2 is damaged; delete its folder", "refused"),
        (1, "incomplete: auto, seed 0: study/state/auto-seed0 has no checkpoint that can be read", "refused"),
        (2, "tune-stn: something is wrong", "unclear"),
        (1, "", "unclear"),
    ],
)
def test_how_a_study_ends(script: dict[str, Any], tmp_path: Path, code: int | str, words: str, outcome: str) -> None:
    """Of the newest start: what an earlier one said is over."""
    attempt = script["Attempt"]("cli", tmp_path / "study")
    attempt.log.write_text(f"{script['START']}\nTraceback (most recent call last):\n{script['START']}\n{words}\n")
    assert script["judge"](attempt, code, {})[0] == outcome


@pytest.fixture
def reports() -> pd.DataFrame:
    """Two trials of three epochs."""
    trials, epochs = [0, 0, 0, 1, 1, 1], [1, 2, 3, 1, 2, 3]
    frame = pd.DataFrame({"trial_id": trials, "epoch": epochs, "val_loss": np.linspace(1, 0.5, 6)})
    return frame.assign(method="stn", seed=0, report_index=frame["epoch"] - 1)


def test_what_is_lost_or_doubled_is_counted(script: dict[str, Any], reports: pd.DataFrame) -> None:
    def found(frame: pd.DataFrame) -> tuple[int, int]:
        counted = script["counts"](frame, reports)
        return counted["lost"], counted["doubled"]

    assert found(reports) == (0, 0)
    assert found(reports.drop(1)) == (2, 0)  # against the whole run, and inside its trial
    assert found(reports.drop(5)) == (1, 0)
    assert found(pd.concat([reports, reports.tail(1)]))[1] > 0


def test_one_bit_is_seen_and_a_name_or_clock_is_not(script: dict[str, Any], reports: pd.DataFrame) -> None:
    named = reports.assign(trial_id=[f"a{number}" for number in reports["trial_id"]], wall_time_s=1.0)
    again = reports.assign(trial_id=[f"b{number}" for number in reports["trial_id"]], wall_time_s=2.0)
    assert script["same"](script["numbered"](named), script["numbered"](again))
    again.loc[3, "val_loss"] = np.nextafter(again.loc[3, "val_loss"], 1)
    assert not script["same"](script["numbered"](named), script["numbered"](again))
