"""The search space: an ordered mapping that refuses what no gradient can tune."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tune_stn.space import Domain, Integer, LogUniform, SearchSpace, Uniform

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "decay": LogUniform(1e-6, 1e-1), "holes": Integer(0, 4)})
START = {"rate": 0.1, "decay": 1e-3, "holes": 2}


def test_it_is_a_mapping_in_the_given_order() -> None:
    assert isinstance(SPACE, Mapping)
    assert list(SPACE) == ["rate", "decay", "holes"]
    assert len(SPACE) == 3
    assert SPACE["holes"] == Integer(0, 4)
    assert "cutout" not in SPACE
    assert dict(SPACE) == SPACE
    assert "Integer(low=0, high=4" in repr(SPACE)


def test_it_keeps_nothing_of_the_dict_it_was_given() -> None:
    domains: dict[str, Domain] = {"rate": Uniform(0, 1)}
    space = SearchSpace(domains)
    domains["other"] = Uniform(0, 1)
    assert list(space) == ["rate"]


@pytest.mark.parametrize(
    "name",
    [
        "lr",
        "LR",
        "learning_rate",
        "learning-rate",
        "Learning Rate",
        "learningrate",
        "optim/lr",
        "momentum",
        "batch_size",
        "batch-size",
        "BatchSize",
        "nesterov",
        "betas",
        "epochs",
        "optimizer",
        "seed",
        "warmup_steps",
    ],
)
def test_what_is_not_in_the_validation_loss_is_refused_with_a_reason(name: str) -> None:
    """Why (no gradient) and what to do instead (param_space beside 'hp'), from every way in."""
    with pytest.raises(ValueError, match="cannot be tuned inside a run") as caught:
        SearchSpace({"rate": Uniform(0, 1), name: LogUniform(1e-4, 1)})
    message = str(caught.value)
    assert repr(name) in message
    assert "not in the validation loss" in message
    assert "param_space beside 'hp'" in message
    with pytest.raises(ValueError, match="cannot be tuned inside a run"):
        SPACE.check_values({**START, name: 0.1})


@pytest.mark.parametrize("name", ["lrelu_slope", "dropout_lr", "momentum_dropout", "label_smoothing", "seedling"])
def test_names_that_only_contain_such_a_word_are_fine(name: str) -> None:
    assert name in SearchSpace({name: Uniform(0, 1)})


def test_empty_space_is_refused() -> None:
    with pytest.raises(ValueError, match="search space is empty"):
        SearchSpace({})


@pytest.mark.parametrize("domain", [0.5, (0, 1), "uniform", None])
def test_what_is_no_domain_is_refused_with_those_accepted(domain: object) -> None:
    with pytest.raises(TypeError, match=r"'rate'.*Uniform, LogUniform, Integer, LogInteger and Normal.*from_tune"):
        SearchSpace({"rate": domain})  # type: ignore[dict-item]


def test_per_batch_names_are_checked() -> None:
    assert SearchSpace({"rate": Uniform(0, 1)}, per_batch=["rate"]).per_batch == {"rate"}
    assert SPACE.per_batch == frozenset()
    with pytest.raises(ValueError, match=r"per_batch names \['wrong'\].*\['rate', 'decay', 'holes'\]"):
        SearchSpace(SPACE, per_batch=["rate", "wrong"])


def test_equal_are_spaces_whose_draws_and_fixed_values_are_the_same() -> None:
    space = SearchSpace(dict(SPACE), per_batch=["rate"], fixed={"noise": 0.1})
    assert space == SearchSpace(dict(reversed([*SPACE.items()])), per_batch=["rate"], fixed={"noise": 0.1})
    for other in (
        SearchSpace(dict(SPACE), per_batch=["decay"], fixed={"noise": 0.1}),
        SearchSpace(dict(SPACE), per_batch=["rate"], fixed={"noise": 0.2}),
        SearchSpace(dict(SPACE), per_batch=["rate"]),
        SearchSpace({**SPACE, "rate": Uniform(0, 0.5)}, per_batch=["rate"], fixed={"noise": 0.1}),
        dict(SPACE),
    ):
        assert space != other


def test_values_come_back_as_floats_in_the_order_of_the_space() -> None:
    given = {"holes": np.int64(3), "decay": np.float32(1e-3), "rate": 0}
    values = SPACE.check_values(given)  # type: ignore[arg-type]
    assert list(values) == ["rate", "decay", "holes"]
    assert values == {"rate": 0.0, "decay": pytest.approx(1e-3, rel=1e-6), "holes": 3.0}
    assert {type(value) for value in values.values()} == {float}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.95}, r"start value 0\.95 of 'rate' is outside \[0, 0\.9\]"),
        ({"rate": -1e-3}, r"start value -0\.001 of 'rate' is outside"),
        ({"decay": 0.0}, r"start value 0 of 'decay' is outside \[1e-06, 0\.1\] on a log scale"),
        ({"holes": 2.5}, r"start value 2\.5 of 'holes' is outside the integers 0 to 4"),
        ({"holes": 5}, r"start value 5 of 'holes' is outside"),
        ({"rate": math.nan}, r"start value nan of 'rate' is outside"),
        ({"rate": math.inf}, r"start value inf of 'rate' is outside"),
        ({"rate": "0.1"}, r"start value of 'rate' is '0\.1', which is not a number"),
        ({"rate": True}, r"start value of 'rate' is True, which is not a number"),
        ({"rate": None}, r"start value of 'rate' is None, which is not a number"),
        ({"cutout": 1}, r"unknown hyperparameter 'cutout'; this task has rate, decay, holes"),
    ],
)
def test_wrong_value_is_refused_by_name(change: Mapping[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPACE.check_values({**START, **change})  # type: ignore[dict-item]


def test_missing_values_are_all_named() -> None:
    with pytest.raises(ValueError, match="no start value for rate, holes"):
        SPACE.check_values({"decay": 1e-3})


def test_some_are_fixed_and_the_others_tuned() -> None:
    whole = SearchSpace(dict(SPACE), per_batch=["rate", "decay"])
    space = whole.fix({"rate": 0.3}).fix({"holes": 2})
    assert list(space) == ["decay"]
    assert space.fixed == {"rate": 0.3, "holes": 2}
    assert space.per_batch == {"decay"}
    assert "fixed={'rate': 0.3, 'holes': 2}" in repr(space)
    assert whole.fixed == {}
    assert "fixed" not in repr(whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 1.0}, "unknown hyperparameter 'speed'; accepted are rate, decay, holes"),
        ({"rate": 0.95}, "fixed value 0.95 of 'rate' is outside"),
        (START, "all hyperparameters would be fixed"),
    ],
)
def test_what_cannot_be_fixed_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPACE.fix(values)
    with pytest.raises(ValueError, match="'rate' is both tuned and fixed"):
        SearchSpace({"rate": Uniform(0, 1)}, fixed={"rate": 0.5})


@pytest.mark.parametrize("name", ["", " ", "../x", "a//b", "/a", "a/", "a/../b", ".", "a\\b", "a\nb", " a", 3, None])
def test_a_name_that_no_column_or_path_can_have_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="hyperparameter name"):
        SearchSpace({name: Uniform(0, 1)})


@pytest.mark.parametrize("name", ["dropout", "encoder/dropout", "weight decay", "λ", "=x", "a.b"])
def test_a_name_may_be_a_path_or_any_word(name: str) -> None:
    assert list(SearchSpace({name: Uniform(0, 1)})) == [name]
