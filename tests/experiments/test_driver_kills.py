"""The script of killed drivers runs, and would see a report lost, doubled or changed."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "driver_kills.py"


@pytest.mark.own_ray
@pytest.mark.timeout(300)
def test_smoke(run_script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("driver_kills.py", "--smoke-test", "--what", "tuner", "--results", str(tmp_path))
    (row,) = pd.read_csv(tmp_path / "kills.csv").to_dict("records")
    assert row["what"] == "tuner"
    assert row["equal"]
    assert row["same_reports"]
    assert row["same_schedule"]
    assert (row["reports"], row["lost"], row["doubled"]) == (8, 0, 0)
    assert "1 of 1 killed runs ended with the tables of the run left alone" in capsys.readouterr().out


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


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
