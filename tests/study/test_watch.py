"""The report of a study that runs: written until the study has ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_stn.study.state import SPARE_FILE
from tune_stn.study.watch import AFTER_END_S, is_running, watch
from tune_stn.training.tables import hp_names, metric_names, reports_schema, write_table

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.slow
def test_pages_are_written_until_the_study_has_ended_and_once_more(make_study: Callable[..., Path]) -> None:
    study = make_study()
    (study / SPARE_FILE).write_text("")
    (study / "state" / "stn-seed0").mkdir(parents=True)
    (study / "state" / "stn-seed0" / "done.json").write_text("{}")
    tables = [study / f"{name}.parquet" for name in ("reports", "schedule", "incumbent")]
    for table in tables:
        table.touch()
    said: list[str] = []
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert (study / "report.html").exists()
        (study / "report.html").unlink()
        if len(waited) == 2:
            (study / SPARE_FILE).unlink()

    found = watch(study, 30.0, said.append, sleep=sleep)
    assert waited == [30.0, 30.0, AFTER_END_S]
    assert (study / "report.html").exists()
    assert len(said) == 4
    page = study / "report.html"
    assert {line.split(" ", 1)[1] for line in said} == {f"{page}: 1 of 9 runs have ended, {len(found.reports)} reports"}


@pytest.mark.slow
def test_of_a_study_that_had_ended_there_is_one_page(make_study: Callable[..., Path]) -> None:
    said: list[str] = []
    watch(make_study(), 30.0, said.append, sleep=lambda seconds: pytest.fail("it waited"))
    assert len(said) == 1


@pytest.mark.parametrize("running", [True, False])
def test_a_recorded_run_goes_on_while_a_trial_does(make_study: Callable[..., Path], running: bool) -> None:
    path = make_study(kinds={"tune": "population"}, seeds=[0])
    study = json.loads((path / "study.json").read_text()) | {"recorder": {}}
    (path / "study.json").write_text(json.dumps(study))
    reports = pd.read_parquet(path / "reports.parquet")
    if running:
        reports.loc[reports.index[-1], "status"] = "running"
    schema = reports_schema(metric_names(reports.columns), hp_names(reports.columns))
    write_table(reports, schema, path / "reports.parquet")
    assert is_running(path) == running
