"""What every method of a comparison keeps to, and the context that it plans from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tune_stn.methods
from tune_stn import compare
from tune_stn.methods import ALGORITHMS, METHODS, Context, Plan, get_method, in_order
from tune_stn.methods.method import METRIC, start_point
from tune_stn.tasks import get_task
from tune_stn.training.rules import RULES
from tune_stn.training.schedule import Schedule
from tune_stn.tuning.cluster import Cluster

SELF_TUNING = ["stn", "delta-stn", "auto", "stn-population"]
BASELINES = ["fixed", "random", "early-dropout", "late-dropout", "grid", "tpe", "gp-bo"]
BASELINES += ["hyperband", "asha", "median", "pbt", "pb2"]
CONTROLS = ["frozen", "progress-ratio", "replayed", "last-values"]


def context(**more: object) -> Context:
    given: dict[str, object] = {"task": get_task("digits-mlp", epochs=10), "budget": 35.0, "seed": 0, "slots": 2}
    return Context(**(given | more))  # type: ignore[arg-type]


def test_every_method_has_a_name_a_sentence_and_a_file_of_the_package() -> None:
    assert list(METHODS) == SELF_TUNING + BASELINES + CONTROLS
    assert all(method.name == name for name, method in METHODS.items())
    sentences = [method.description for method in METHODS.values()]
    assert len(set(sentences)) == len(sentences)
    assert all(10 < len(sentence) < 100 and "\n" not in sentence for sentence in sentences)
    assert {method.algorithm for method in METHODS.values()} == set(RULES) == set(ALGORITHMS)


def test_every_file_is_of_a_method_and_loaded_when_that_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str) -> SimpleNamespace:
        loaded.append(name)
        return SimpleNamespace(plan=str, replayed=str, last_values=str, early=str, late=str)

    given = context()
    monkeypatch.setattr(tune_stn.methods.importlib, "import_module", load)
    for method in METHODS.values():
        method.plan(given)
    apart = {"method", "optuna", "pb2_over_space", "replay"}  # what others share; a replay is made of a schedule
    files = {file.stem for file in Path(tune_stn.methods.__file__).parent.glob("[!_]*.py")}
    assert {name.rpartition(".")[2] for name in loaded} == files - apart


@pytest.mark.parametrize("name", METHODS)
def test_every_method_plans(name: str) -> None:
    method = get_method(name)
    assert method.algorithm in RULES
    followed = Schedule.constant(get_task("digits-mlp").start) if method.follows else None
    plan = method.plan(context(followed=followed))
    assert isinstance(plan, Plan)
    assert plan.samples >= 1
    assert set(plan.hp) == set(get_task("digits-mlp").space)
    assert plan.kept_checkpoints >= 2  # one more, in case the newest is damaged
    endless = method.plan(context(budget=math.inf, trials=3, followed=followed))
    assert 1 <= endless.samples <= 3


def test_methods_that_follow_another_run_after_all_others() -> None:
    asked = [get_method(name) for name in ("last-values", "random", "replayed", "auto", "fixed")]
    assert [method.name for method in in_order(asked)] == ["random", "auto", "fixed", "last-values", "replayed"]
    unfollowed = [get_method(name) for name in ("stn", "asha")]
    assert in_order(unfollowed) == unfollowed


def test_a_method_without_the_one_it_follows_is_refused_in_one_line() -> None:
    message = r"methods=\['fixed', 'replayed'\]: replayed is made from the run of auto at the same seed, .*; add auto$"
    with pytest.raises(ValueError, match=message):
        in_order([get_method("fixed"), get_method("replayed")])


def test_an_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown method 'sgd'; accepted are") as caught:
        get_method("sgd")
    assert all(name in str(caught.value) for name in METHODS)


def test_context_counts_trials() -> None:
    assert context().epochs == 10
    assert context().full_trials == 4  # three and a half
    assert context(budget=30.0).full_trials == 3
    assert context().samples(1) == 36
    assert context().samples(10) == 5
    assert context(trials=2).samples(1) == 2
    assert context(budget=math.inf, trials=2).full_trials == 2
    assert METRIC == "best_val_loss"


def test_start_point_is_the_tasks_with_integers_as_such() -> None:
    point = start_point(get_task("fashion-mnist-cnn"))
    assert point == get_task("fashion-mnist-cnn").start
    assert [type(point[name]) for name in ("cutout_length", "cutout_holes", "dropout_0")] == [int, int, float]


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("undrawn")
def test_baselines_spend_the_budget_and_try_the_start_values_first(cluster: Cluster, tmp_path: Path) -> None:
    methods, budget = ["grid", "early-dropout", "tpe", "asha", "median", "pb2"], 14.0
    task = get_task("digits-mlp", epochs=4, train_images=100, hidden=16)
    splits = task.data(3)  # which come along: a worker need not import what the digits are in
    one = replace(cluster, max_concurrent=1)  # in one process, where trials are never paused
    results = compare(
        replace(task, data=lambda seed: splits), methods, budget=budget, seeds=[3], out=tmp_path / "study", cluster=one
    )
    assert results.study["missing"] == []
    start = np.array(list(get_task("digits-mlp").start.values()))
    best = {}
    for method, reports in results.reports.groupby("method"):
        assert budget <= reports["cost_total"].max() < budget + 2, method
        trials = reports.groupby("trial_id", sort=False)
        assert len(trials) >= 4
        assert trials["epoch"].max().max() == 4
        # Two trials of pb2 start side by side.
        first = trials[[f"hp/{name}" for name in get_task("digits-mlp").space]].first().to_numpy()[:2]
        (at_start,) = np.flatnonzero(np.isclose(first, start).all(axis=1))
        best[method] = reports[reports["trial_id"] == trials.size().index[at_start]].sort_values("epoch")["val_loss"]
    assert set(best) == set(methods)
    losses = np.array([loss.to_numpy()[:1] for loss in best.values()])
    assert (losses == losses[0]).all()  # the same weights and data for every method
