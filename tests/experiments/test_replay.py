"""The scripts of replayed schedules run from end to end at toy size, and go on where they were cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_stn.data import fashion_mnist
from tune_stn.data.source import DataError
from tune_stn.training.schedule import Schedule

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = ("--smoke-test", "--seeds", "1", "--processes", "1", "--results")


@pytest.fixture(autouse=True)
def data() -> None:
    try:
        fashion_mnist.find()
    except DataError:
        pytest.skip("needs Fashion-MNIST (Debian: dataset-fashion-mnist)")


def test_replay(run_script: Callable[..., None], tmp_path: Path) -> None:
    run_script("replay.py", *OPTIONS, str(tmp_path))
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert len(runs) == 6 + 5
    assert (
        runs.set_index("row").loc["STN", "cost"] > 1.05 * runs.set_index("row").loc["STN's schedule, replayed", "cost"]
    )
    schedule = Schedule.from_parquet(tmp_path / "schedule-smoke-seed0.parquet")
    assert schedule.names == ("dropout_fc",)
    assert schedule.times.tolist() == [0, 2, 4, 6]
    summary = pd.read_csv(tmp_path / "summary-smoke.csv").set_index("row")
    assert len(summary) == 6
    best = runs[runs["row"] == "fixed, best of the grid"].sort_values("best_val_loss").iloc[0]
    assert summary.loc["fixed, best of the grid", "value"] == best["value"]
    assert summary.loc["with Gaussian noise", "value"] == best["value"]
    differences = summary["test_loss_at_best"] - summary.loc["fixed, best of the grid", "test_loss_at_best"]
    assert differences.iloc[1:].tolist() == pytest.approx(summary["test_loss_at_best_minus_fixed"].iloc[1:].tolist())

    (tmp_path / "runs.csv").write_text("".join((tmp_path / "runs.csv").read_text().splitlines(keepends=True)[:-2]))
    run_script("replay.py", *OPTIONS, str(tmp_path))
    again = pd.read_csv(tmp_path / "runs.csv").drop(columns=["device_time_s", "wall_time_s"])
    pd.testing.assert_frame_equal(again, runs.drop(columns=["device_time_s", "wall_time_s"]))


def test_start_convergence(
    run_script: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    run_script("start_convergence.py", *OPTIONS, str(tmp_path))
    epochs = pd.read_csv(tmp_path / "epochs.csv")
    assert sorted(epochs.groupby("epoch").size().items()) == [(0, 5), (1, 5), (2, 5)]
    spread = pd.read_csv(tmp_path / "spread-smoke.csv").set_index("epoch")
    assert spread.loc[0, "range"] == pytest.approx(0.85)
    last = epochs.loc[epochs["epoch"] == 2, "value"]
    assert spread.loc[2, ["range", "std"]].tolist() == pytest.approx([last.max() - last.min(), last.std()])
    assert (tmp_path / "schedules-smoke.png").read_bytes().startswith(b"\x89PNG")
    assert "range" in capsys.readouterr().out
