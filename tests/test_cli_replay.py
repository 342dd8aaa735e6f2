"""`tune-stn replay`: a study that follows another one's schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tune_stn.cli import main
from tune_stn.study.results import load_results
from tune_stn.training.schedule import Schedule

SMALL = ("--task", "digits-mlp", "--set", "train_images=300", "--set", "batch_size=100", "--set", "warmup_epochs=0",
         "--set", "hidden=16")  # fmt: skip


def tune_stn(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with another schedule."""
    monkeypatch.chdir(tmp_path)
    Schedule.constant({"dropout_1": 0.3}).to_parquet("good.parquet")
    return tmp_path


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn")
def test_a_study_follows_the_schedule_of_another(tuned: Path, here: Path) -> None:
    schedule = str(tuned / "schedule.parquet")
    for arguments in (
        ("replay", schedule, *SMALL, "--epochs", "4", "--out", "steps"),
        ("replay", schedule, "--per-epoch", *SMALL, "--epochs", "3", "--out", "epochs", "--quiet"),
    ):
        done = tune_stn(*arguments)
        assert done.exit_code == 0, done.stderr
        assert ("replay" in done.stdout) == ("--quiet" not in arguments)

    steps, epochs = (load_results(name) for name in ("steps", "epochs"))
    found = Schedule.from_frame(load_results(tuned).schedule)
    assert steps.study["methods"] == ["replay"]
    assert set(steps.schedule["method"]) == set(steps.schedule["source"]) == {"replay"}
    assert Schedule.from_frame(steps.schedule) == found
    assert steps.reports["cost"].tolist() == [1, 2, 3, 4]
    assert steps.reports["hp/dropout_1"].iloc[-1] == found.at(9)["dropout_1"]
    assert (here / "steps" / "report.html").exists()
    per_epoch = Schedule.from_frame(epochs.schedule)
    assert [per_epoch.at(3 * epoch) for epoch in range(3)] == [found.per_epoch().at(epoch) for epoch in range(3)]

    # Resumed with another schedule, it would be another study.
    again = ("--task", "digits-mlp", *SMALL[2:], "--epochs", "4", "--out", "steps", "--resume")
    other = tune_stn("replay", "good.parquet", *again)
    assert other.exit_code == 2
    assert "was begun with method_settings" in other.stderr
    same = tune_stn("replay", schedule, *again)
    assert same.exit_code == 0
    assert "finished before, skipped" in same.stdout
    assert json.loads((here / "steps" / "study.json").read_text())["method_settings"]["replay"]["schedule"] == repr(
        found
    )
