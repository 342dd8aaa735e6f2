"""The same study twice: the same tables, but for times and for the names that Ray Tune gives its trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tune_stn.cli import main
from tune_stn.study.collect import TABLES
from tune_stn.study.results import load_results

TIMES = ("wall_time_s", "device_time_s")


def tables(directory: Path) -> dict[str, str]:
    """The tables as text with all digits; trials are numbered in the order of their reports."""
    results = load_results(directory)
    names = {name: str(number) for number, name in enumerate(results.reports["trial_id"].unique())}
    found = {}
    for table in TABLES:
        frame = getattr(results, table)
        ids = {column: frame[column].map(names) for column in ("trial_id", "parent_trial_id") if column in frame}
        found[table] = frame.assign(**ids).drop(columns=[time for time in TIMES if time in frame]).to_csv()
    return found


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("cluster", "undrawn")
def test_the_same_study_twice_gives_the_same_tables(tmp_path: Path) -> None:
    """Of random draws, and of a self-tuning method that starts again from where it ended."""
    command = ["compare", "--task", "ridge", "--methods", "random,stn", "--budget", "6", "--quiet"]
    command += ["--no-rehearsal", "--set", "epochs=3", "--set", "warmup_epochs=0"]
    for name in ("one", "two"):
        seeds = ["--seeds", "1"]
        done = CliRunner().invoke(main, [*command, *seeds, "--out", str(tmp_path / name)], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    first = tables(tmp_path / "one")
    assert tables(tmp_path / "two") == first
    assert first["reports"].count("\n") > 6
