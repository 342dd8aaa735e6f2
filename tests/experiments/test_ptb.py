"""The scripts of the STN paper's two tables run, here on the text inside the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_stn.study.results import load_results

RunScript = Callable[..., None]


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_table_2(run_script: RunScript, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "text-lstm", "--smoke-test", "--seeds", "1", "--methods", "stn,fixed"]
    run_script("ptb_tuning.py", *arguments, "--out", str(tmp_path), "--results", str(tmp_path / "results"))
    folder = tmp_path / "results" / "text-lstm-smoke"
    table = pd.read_csv(folder / "table.csv")
    assert set(table["method"]) == {"stn", "fixed"}
    assert table.set_index("method")["cost"].min() >= 2  # the budget, which STN has spent in its first epoch
    assert table["val_perplexity"].between(2, 50).all()
    schedules = pd.read_parquet(folder / "schedules.parquet")
    assert schedules["hp"].nunique() == 7
    assert schedules["trial_id"].nunique() == 1
    assert (folder / "schedules.png").exists()
    assert "val_perplexity" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_one_trial_to_its_end(run_script: RunScript, tmp_path: Path) -> None:
    arguments = ["--task", "text-lstm", "--smoke-test", "--seeds", "1", "--methods", "stn", "--one-trial"]
    run_script("ptb_tuning.py", *arguments, "--out", str(tmp_path), "--results", str(tmp_path / "results"))
    assert pd.read_csv(tmp_path / "results" / "text-lstm-smoke-one" / "table.csv")["trials"].tolist() == [1]
    assert load_results(tmp_path / "ptb_tuning" / "text-lstm-smoke-one").reports["epoch"].tolist() == [
        1,
        2,
    ]  # whatever they cost


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_table_1(run_script: RunScript, tmp_path: Path) -> None:
    arguments = ["--task", "text-lstm", "--smoke-test", "--seeds", "1"]
    run_script("ptb_schedule.py", *arguments, "--out", str(tmp_path), "--results", str(tmp_path / "results"))
    folder = tmp_path / "results" / "text-lstm-smoke"
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 6
    assert table["cost"].max() == table.set_index("row")["cost"]["STN"]
    schedules = pd.read_parquet(folder / "schedules.parquet")
    assert set(schedules["hp"]) == {"dropout_output"}
    rates = table.set_index("row")["rate"]  # each row is the trial that it names
    assert rates["fixed at STN's last rate"] == round(schedules["value"].iloc[-1], 4)
    assert rates[["fixed at STN's last rate", "with Gaussian noise", "with sinusoid noise"]].nunique() == 3
    assert (folder / "schedules.png").exists()


def test_lstm_cost(run_script: RunScript, tmp_path: Path) -> None:
    run_script("lstm_cost.py", "--smoke-test", "--results", str(tmp_path))
    table = pd.read_csv(tmp_path / "cpu.csv")
    assert len(table) == 20
    plain = table[table["layer"] == "nn.LSTM"]
    assert plain["operations_over_plain"].tolist() == [1.0] * 4
    assert (table["over_plain"] > 0).all()
