from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tune_stn.study import importance as module
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.results import Results

RUN = {"task": "t", "method": "stn", "trial_id": "x"}


def results_of(
    places: Mapping[str, Sequence[float]],
    scales: Mapping[str, Sequence[float]] | None = None,
    seeds: Sequence[int] = (0,),
    source: str = "stn",
) -> Results:
    """A study of one self-tuned trial at each seed, with hyperparameters at these places at steps 0, 25, ..."""
    rows = []
    for seed in seeds:
        for hp, path in places.items():
            for index, where in enumerate(path):
                scale = (scales or {}).get(hp, [0.5] * len(path))[index]
                raw = float(np.log(where / (1 - where)))
                row = {"step": 25 * index, "epoch": index, "value": where, "raw": raw, "scale": scale}
                rows.append(RUN | row | {"seed": seed, "hp": hp, "source": source if index else "start"})
    report = RUN | {"report_index": 0, "epoch": 1, "step": 100, "cost": 1.0, "cost_total": 1.0, "wall_time_s": 1.0}
    reports = pd.DataFrame([report | {"seed": seed, "val_loss": 1.0, "test_loss": 1.0} for seed in seeds])
    study = {"task": "t", "methods": ["stn"], "seeds": list(seeds), "missing": []}
    return Results(Path(), study, reports, pd.DataFrame(rows), best_so_far(reports))


def shares(results: Results, measure: str, part: int) -> dict[str, float]:
    frame = results.importance
    return frame[(frame["measure"] == measure) & (frame["part"] == part)].set_index("hp")["importance"].to_dict()


def test_movement_is_the_share_of_the_net_change_of_place_in_each_quarter() -> None:
    found = results_of({"a": [0.2, 0.5, 0.5, 0.5, 0.5], "b": [0.5, 0.6, 0.4, 0.4, 0.6]})
    assert shares(found, "movement", 1) == pytest.approx({"a": 0.75, "b": 0.25})
    assert shares(found, "movement", 2) == pytest.approx({"a": 0.0, "b": 1.0})
    assert shares(found, "movement", 3) == {}  # nothing moved
    assert shares(found, "movement", 4) == pytest.approx({"a": 0.0, "b": 1.0})
    assert shares(found, "movement", 0) == pytest.approx({"a": 0.75, "b": 0.25})  # what is undone does not count


def test_sharpness_is_the_share_of_the_curvature_that_the_scales_have_settled_to() -> None:
    still = {"a": [0.5] * 5, "b": [0.5] * 5}
    found = results_of(still, {"a": [0.5, 0.5, 0.5, 0.5, 0.1], "b": [0.5, 0.5, 0.5, 0.5, 0.2]})
    assert shares(found, "sharpness", 1) == pytest.approx({"a": 0.5, "b": 0.5})
    assert shares(found, "sharpness", 4) == pytest.approx({"a": 0.8, "b": 0.2})  # 1/0.01 and 1/0.04
    assert shares(found, "sharpness", 0) == shares(found, "sharpness", 4)
    assert results_of(still).importance.empty  # scales that stay say nothing


def test_runs_are_averaged_and_their_spread_is_said() -> None:
    one, two = results_of({"a": [0.2, 0.6], "b": [0.5, 0.5]}), results_of({"a": [0.5, 0.5], "b": [0.2, 0.6]})
    later = two.schedule.assign(seed=1)
    both = results_of({"a": [0.2, 0.6], "b": [0.5, 0.5]}, seeds=(0, 1))
    first = both.schedule[both.schedule["seed"] == 0]
    found = replace(both, schedule=pd.concat([first, later])).importance
    whole = found[found["part"] == 0].set_index("hp")
    assert one.importance["n"].unique() == [1]
    assert whole[["importance", "low", "high", "n"]].loc["a"].tolist() == [0.5, 0.0, 1.0, 2]


@pytest.mark.parametrize("source", ["fixed", "replay", "explore"])
def test_what_did_not_tune_itself_has_no_row(source: str) -> None:
    assert results_of({"a": [0.2, 0.6], "b": [0.5, 0.6]}, source=source).importance.empty


def random_trials(count: int) -> Results:
    """Trials of random search whose loss depends on `a` alone."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.0, 1.0, count), rng.uniform(1e-4, 1.0, count)
    trial = {"task": "t", "method": "random", "seed": 0, "trial_id": [str(i) for i in range(count)], "report_index": 0}
    cost = {"cost": 1.0, "cost_total": np.arange(count) + 1.0, "wall_time_s": np.arange(count) + 1.0, "step": 1}
    reports = pd.DataFrame(trial | cost | {"hp/a": a, "hp/b": b, "val_loss": (a - 0.3) ** 2, "test_loss": 0.0})
    schedule = results_of({"a": [0.5]}).schedule.iloc[:0]
    study = {"task": "t", "methods": ["random"], "seeds": [0], "missing": []}
    return Results(Path(), study, reports, schedule, best_so_far(reports))


def test_optunas_evaluators_find_the_one_that_matters_among_random_trials() -> None:
    found = random_trials(40)
    table = found.importance.set_index(["measure", "hp"])
    for measure in ("fanova", "mdi"):
        assert table.loc[(measure, "a"), "importance"] > 0.8
        assert table.loc[measure]["importance"].sum() == pytest.approx(1)
    assert (table["n"] == 40).all()
    assert found.importance is found.importance  # worked out once


@pytest.mark.parametrize("why", ["few", "diverged", "no optuna"])
def test_without_enough_random_trials_or_optuna_there_are_none_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    found = random_trials(9 if why == "few" else 12)
    if why == "diverged":
        found = replace(found, reports=found.reports.assign(val_loss=np.nan))
    if why == "no optuna":
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert found.importance.empty
    assert list(found.importance) == module.COLUMNS


def test_every_share_of_a_study_is_one_of_a_whole(make_study: Callable[..., Path], results: Results) -> None:
    table = results.importance
    assert set(table["method"]) == {"stn", "random"}
    sums = table.groupby(["method", "measure", "part"])["importance"].sum()
    assert sums.to_numpy() == pytest.approx(1)
