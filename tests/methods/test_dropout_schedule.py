"""Early and late dropout: random draws, whose rates are in force in one half of the epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray.tune.experiment import Experiment

from tune_stn.methods import Plan, get_method
from tune_stn.methods.dropout_schedule import no_dropout
from tune_stn.space import LogUniform, SearchSpace, Uniform
from tune_stn.tasks import get_task
from tune_stn.tuning.trainable import STNTrainable

RATES = ["dropout_input", "dropout_1", "dropout_2"]


def configs(plan: Plan, count: int) -> list[dict[str, Any]]:
    experiment = Experiment(
        "x", STNTrainable, config={"hp": plan.hp, **plan.config}, num_samples=count, storage_path="/nowhere"
    )
    search: Any = plan.search_alg
    search.max_concurrent = 0
    search.add_configurations([experiment])
    return [search.next_trial().config for _ in range(count)]


@pytest.mark.parametrize("name", ["early-dropout", "late-dropout"])
def test_drawn_rates_hold_in_one_half_and_the_rest_throughout(name: str, make_context: Any) -> None:
    task = get_task("digits-mlp", epochs=11)
    drawn = configs(get_method(name).plan(make_context(task=task)), 3)
    same = configs(get_method("random").plan(make_context(task=task)), 3)
    assert [config["hp"] for config in drawn] == [config["hp"] for config in same]
    assert drawn[0]["hp"] == dict(task.start)
    for config in drawn:
        values = config["hp"]
        schedule = config["schedule"]
        schedule.check(task.space)
        off = values | dict.fromkeys(RATES, 0.0)
        first, second = (values, off) if name == "early-dropout" else (off, values)
        assert [schedule.at(epoch) for epoch in (0, 4, 5, 10)] == [first, first, second, second]
        assert schedule.unit == "epoch"


def test_a_domain_without_zero_ends_at_its_least_rate() -> None:
    task = get_task("digits-mlp")
    space = SearchSpace({**task.space, "dropout_1": Uniform(0.1, 0.5), "dropout_2": LogUniform(0.01, 0.5)})
    off = no_dropout(replace(task, space=space, start={**task.start, "dropout_1": 0.2, "dropout_2": 0.2}))
    assert list(off) == RATES
    np.testing.assert_allclose(list(off.values()), [0, 0.1, 0.01], rtol=1e-6)
    assert all(space[name].contains(value) for name, value in off.items())


def test_a_task_without_dropout_is_refused_in_one_line(make_context: Any) -> None:
    task = get_task("digits-mlp")
    others = {name: domain for name, domain in task.space.items() if name not in RATES}
    bare = replace(task, space=SearchSpace(others), start={n: task.start[n] for n in others}, dropout={})
    with pytest.raises(ValueError, match=r"^task 'digits-mlp' tunes no dropout .* input_scale, weight_decay is named"):
        get_method("late-dropout").plan(make_context(task=bare))
