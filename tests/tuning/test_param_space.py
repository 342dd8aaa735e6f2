"""What a searcher reads in param_space: domains in and beside hp, the task's start values; there and back as JSON."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.search.variant_generator import generate_variants

from tune_stn.tasks.ridge import ridge
from tune_stn.tuning.param_space import from_json, split_domains, start_of_task, to_json


def test_domains_of_hp_are_told_from_those_around_it_wherever_they_are() -> None:
    config = {
        "task": "ridge",
        "hp": {"penalty": tune.loguniform(0.1, 1.0), "constant": 0.5},
        "lr": tune.uniform(0, 1),
        "model": {"layers": [tune.randint(1, 9), 4], "name": "mlp"},
        "rest": [1, {"two": 2}],
    }
    hp, outside = split_domains(config)
    assert list(hp) == ["penalty"]
    assert outside == {"lr": config["lr"], "model": config["model"]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lr": tune.grid_search([1, 2])}, "grid_search at 'lr' of param_space"),
        ({"hp": {"a": tune.grid_search([1, 2])}}, "grid_search at 'hp/a' of param_space"),
        ({"hp": tune.choice([{"a": 1}])}, "accepted is a mapping from each hyperparameter's name to its domain"),
        ({"hp": {"a": {"b": tune.uniform(0, 1)}}}, "accepted is a mapping from each hyperparameter's name"),
    ],
)
def test_what_cannot_be_searched_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="param_space") as caught:
        split_domains(config)
    assert words in str(caught.value)


def test_the_task_is_made_with_the_settings_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def noted(*, width: int = 1, depth: int = 1, extra: object = None) -> Any:
        made.append({"width": width, "depth": depth, "extra": extra})
        return ridge()

    monkeypatch.setitem(sys.modules, "noted_task", SimpleNamespace(noted=noted))
    config = {
        "task": "noted_task:noted",
        "algorithm": "stn",
        "seed": 4,
        "hp": {},
        "width": 7,
        "depth": tune.randint(1, 9),
    }
    hidden = {"extra": {"a": [("__ref_ph", "1f2e")]}, "optimizer": ("__ref_ph", "0a1b")}
    assert start_of_task(config | hidden, {"depth": config["depth"]}) == {"penalty": 3.0}
    assert made == [{"width": 7, "depth": 1, "extra": None}]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (None, "has no 'task'"),
        (("__ref_ph", "1f2e"), "an object, which Tune hides"),
        (tune.choice(["ridge"]), "object"),
    ],
)
def test_a_task_that_is_not_named_is_asked_for(task: object, words: str) -> None:
    with pytest.raises(ValueError, match="STNSearch begins with the task's start values") as caught:
        start_of_task({"task": task}, {})
    assert words in str(caught.value)
    assert "STNSearch(start=task.start)" in str(caught.value)


def test_unknown_tasks_and_settings_are_named() -> None:
    for config, words in (({"task": "rigde"}, "unknown task 'rigde'"), ({"task": "ridge", "widht": 3}, "'widht'")):
        with pytest.raises(ValueError, match=words):
            start_of_task(config, {})


def test_a_space_comes_back_from_json_with_the_same_draws() -> None:
    space = {
        "lr": tune.loguniform(1e-4, 1.0),
        "steps": tune.qloguniform(1, 64, 1),
        "momentum": tune.quniform(0, 1, 0.25),
        "model": {"layers": [tune.randint(1, 9), tune.qlograndint(8, 64, 8), None], "pair": (tune.randn(1, 2), "x")},
        "kind": tune.choice([("__ref_ph", "1f2e"), {"name": "sgd", "nesterov": True}, tune.uniform(0, 1), 3]),
    }
    again = from_json(json.loads(json.dumps(to_json(space))))
    kinds = set()
    for seed in range(40):
        (_, wanted), (_, found) = (
            next(generate_variants({"config": config}, random_state=np.random.default_rng(seed)))
            for config in (space, again)
        )
        assert found == wanted
        kinds.add(type(found["config"]["kind"]))
    assert kinds == {tuple, dict, float, int}  # an object that Tune hides is still a tuple, or it would not be found


def test_a_domain_that_json_cannot_hold_is_named() -> None:
    with pytest.raises(ValueError, match="hyperparameter 'lr' has the domain Function"):
        to_json({"model": {"lr": tune.sample_from(lambda: 1)}})
