"""Numbers found in results and configs, and the columns made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tune_stn.tuning.recording.result_reader import (
    ResultReader,
    as_number,
    describes_itself,
    leaves,
    reported_numbers,
    result_numbers,
)


def test_leaves_are_the_numbers_by_path_in_python_types() -> None:
    nested = {"a": 1, "b": {"c": np.float32(0.5), "d": {"e": np.int64(3)}}, "f": float("inf"), "g": {}}
    others = {"word": "x", "switch": True, "numpy switch": np.bool_(True), "list": [1], "none": None}
    found = leaves(nested | others | {"vector": torch.ones(2), 7: {8: 9}})
    assert found == {"a": 1, "b/c": 0.5, "b/d/e": 3, "f": math.inf, "7/8": 9}
    assert {type(value) for value in found.values()} == {int, float}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *((np.array(0.5), 0.5), (np.array(3), 3), (torch.tensor(0.5), 0.5), (torch.tensor(3), 3)),
        *((torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5), (np.uint64(2**63), 2.0**63)),
        *((10**400, math.inf), (-(10**400), -math.inf), (2**63 - 1, 2**63 - 1), (2**63, 2.0**63)),
        *((np.array(True), None), (torch.tensor(True), None), (np.array(1j), None), ([1.0], None), ("1", None)),
        *((np.array(["x"])[0], None), (np.array(None), None), (np.datetime64("2020"), None), (torch.ones(1), None)),
    ],
)
def test_a_number_is_pythons_own_also_out_of_an_array_without_axes(given: Any, expected: float | None) -> None:
    found = as_number(given)
    assert (found, type(found)) == (expected, type(expected))


def test_two_at_one_path() -> None:
    assert leaves({"a": {"b": 1}, "a/b": 2}) == leaves({"a/b": 1, "a": {"b": 2}}) == {"a/b": 1}
    config = {"rate": 1, "hp": {"rate": 2, "x": 3}}
    assert ResultReader().hyperparameters(config) == {"rate": 1, "hp/rate": 2, "x": 3}


def test_choices_are_text() -> None:
    config = {
        **{"act": "relu", "bn": np.bool_(True), "clip": None, "widths": [64, (32, "x")], "long": "x" * 300},
        **{"hp": {"name": "a"}, "lone": "\ud800", "lr": 0.1, "data": torch.ones(3), "model": len, "many": [0] * 300},
    }
    plain = {"act": "relu", "bn": "True", "clip": "None", "widths": "[64, (32, 'x')]", "long": "x" * 200}
    assert ResultReader().choices(config) == plain | {"name": "a", "lone": "?"}
    assert ResultReader(hps=["bn", "model", "lr"]).choices(config) == {"bn": "True", "model": "<built-in function len>"}


def test_tunes_own_counts_and_the_config_are_no_metrics() -> None:
    result = {"training_iteration": 3, "time_total_s": 1.0, "done": False, "config": {"lr": 1}, "eval": {"loss": 2.0}}
    assert result_numbers(result) == {"training_iteration": 3, "time_total_s": 1.0, "eval/loss": 2.0}
    found = result_numbers(result) | {"cost_increment": 1.0}
    assert reported_numbers(found, describes_itself=True) == {"eval/loss": 2.0}
    assert reported_numbers(found) == {"eval/loss": 2.0, "cost_increment": 1.0}


def test_losses_under_their_names() -> None:
    reader = ResultReader(metric="eval/acc", mode="max", columns={"test_loss": "t"})
    assert reader.losses({"eval/acc": 0.9, "t": 3.0, "train_loss": 1.0}) == {
        "val_loss": -0.9,
        "train_loss": 1.0,
        "test_loss": 3.0,
    }
    assert all(math.isnan(value) for value in ResultReader().losses({}).values())


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"step": 5}, 5), ({"step": 5.0}, 5), ({"step": 0.5}, 2), ({"timesteps_total": 7}, 7), ({}, 2)],
)
def test_steps_are_whole_or_counted(found: dict[str, float], expected: int) -> None:
    assert ResultReader().step(found, 2) == expected
    assert ResultReader(columns={"step": "batches"}).step({"batches": 9, "step": 1}, 2) == 9


def test_what_a_report_adds() -> None:
    reader = ResultReader(columns={"device_time_s": "gpu/seconds"})
    assert reader.increment("cost", {"cost": 100.0, "cost_increment": 1.5}, {}) == 1.5
    assert reader.increment("cost", {}, {}) == 1.0
    assert math.isnan(reader.increment("device_time_s", {}, {}))
    assert reader.increment("cost", {"cost": 7.0}, {"cost": 5.0}) == 2.0
    assert reader.increment("cost", {"cost": 7.0}, {}) == 7.0
    assert reader.increment("device_time_s", {"gpu/seconds": 1.0}, {"gpu/seconds": 5.0}) == 1.0  # it began anew


def test_hyperparameters_of_the_config_and_of_the_report() -> None:
    config = {"lr": 0.1, "hp": {"dropout": 0.2}, "model": {"width": 8}, "task": "t"}
    values = {"lr": 0.1, "dropout": 0.2, "model/width": 8}
    assert ResultReader().hyperparameters(config) == values
    assert ResultReader().hp_columns({"loss": 1.0}, values) == {f"hp/{name}": value for name, value in values.items()}
    assert ResultReader().hp_columns({"hp/dropout": 0.3}, values) == {"hp/dropout": 0.3}
    some = ResultReader(hps=("lr", "dropout"))
    assert some.hyperparameters(config) == {"lr": 0.1, "dropout": 0.2}
    found = {"hp/dropout": 0.3, "hp/other": 1.0}
    assert some.hp_columns(found, some.hyperparameters(config)) == {"hp/lr": 0.1, "hp/dropout": 0.3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "least"}, "mode 'least': accepted is 'min' or 'max'"),
        ({"columns": {"val_loss": "x"}}, "columns val_loss: accepted are train_loss, .*; val_loss is the metric"),
        ({"columns": {"accuracy": "x"}}, "columns accuracy: accepted .*; other numbers keep the names they have"),
    ],
)
def test_a_wrong_argument_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResultReader(**arguments)


def test_only_what_has_all_words_describes_itself() -> None:
    """A number called segment describes nothing, nor does a status of theirs."""
    words = {"segment": "", "parent_trial_id": "", "reason": "", "status": "running", "epoch": 1}
    assert describes_itself(words)
    for wrong in ({"segment": 3}, {"parent_trial_id": 1}, {"status": 1}, {"status": "good"}, {"epoch": 0.5}):
        assert not describes_itself(words | wrong)
    for name in words:
        assert not describes_itself({key: value for key, value in words.items() if key != name})
