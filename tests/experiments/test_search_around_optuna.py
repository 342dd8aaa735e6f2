"""The comparison of STNSearch around Optuna with Optuna alone runs, counts cost alike, and runs nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_stn.tasks import get_task
from tune_stn.training import Trainer


@pytest.mark.usefixtures("one_thread")
def test_smoke(run_script: Callable[..., None], tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "results"
    arguments = ("--smoke-test", "--seeds", "2", "--processes", "1", "--out", str(out), "--results", str(results))
    run_script("search_around_optuna.py", *arguments)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.csv")}
    assert len(files) == 4
    run_script("search_around_optuna.py", *arguments)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.csv")} == files
    assert (results / "best_so_far.png").exists()

    trials = pd.read_csv(results / "trials.csv")
    for _, run in trials.groupby(["method", "seed"]):
        first = run.iloc[0]
        assert (first["lr"], first["hidden"]) == (0.03, 128)
        # Cut off at the budget of 12, in epochs of a width of 128.
        assert 12 <= run["cost_total"].max() < 20
    plain = trials[(trials["method"] == "tpe") & (trials["trial_id"] < 2) & (trials["seed"] == 0)]
    flops = [
        Trainer(get_task("digits-mlp", train_images=100, hidden=int(width))).meter.epoch_flops
        for width in plain["hidden"]
    ]
    costs = plain["cost_total"].diff().fillna(plain["cost_total"])
    assert costs.tolist() == pytest.approx([2.0, 2 * flops[1] / flops[0]])

    summary = pd.read_csv(results / "summary.csv").set_index(["cost", "what"])
    best_so_far = pd.read_csv(results / "best_so_far.csv")
    within = best_so_far[best_so_far["cost_total"] <= 12]  # the last report of a run may come after
    best = within.groupby(["method", "seed"])["best_val_loss"].min()
    row = summary.loc[12.0, "best_val_loss"]
    assert row["difference"] == pytest.approx((best["stn inside tpe"] - best["tpe"]).mean())
