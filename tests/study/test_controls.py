"""Shares of a gain, on incumbents written by hand, and what is said beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tune_stn.methods import METHODS
from tune_stn.study.controls import (
    COLUMNS,
    CONTROLLED,
    CONTROLS,
    FOLLOWED,
    START,
    WITHOUT_CONTROLS,
    control_cells,
    control_shares,
    control_words,
)
from tune_stn.study.report import write_report
from tune_stn.study.results import Results, load_results
from tune_stn.study.summary import format_controls, format_summary, summary
from tune_stn.training.rules import get_rule

# Final best validation loss by seed; every run has a worse report before.
LOSSES: Mapping[str, Mapping[int, float]] = {
    "fixed": {0: 1.0, 1: 0.8, 2: 0.9},
    "auto": {0: 0.6, 1: 0.6, 2: 0.9},
    "replayed": {0: 0.7, 1: 0.5, 2: 0.9},
    "last-values": {0: 0.9, 1: 0.7},
    "frozen": {0: 1.1, 1: 0.8, 2: 0.9},
}


def incumbent(losses: Mapping[str, Mapping[int, float]], task: str = "t") -> pd.DataFrame:
    rows = [
        {"task": task, "method": method, "seed": seed, "cost_total": float(cost), "wall_time_s": float(cost)}
        | {"trial_id": "a", "best_val_loss": loss + 1 - cost, "test_loss_at_best": loss}
        for method, by_seed in losses.items()
        for seed, loss in by_seed.items()
        for cost in (0, 1)
    ]
    return pd.DataFrame(rows, columns=[*rows[0]] if rows else ["task", "method", "seed", "best_val_loss"])


def said(losses: Mapping[str, Mapping[int, float]], *more: str, budget: float | None = 9.0) -> list[str]:
    return control_words({"task": "t", "methods": [*losses, *more], "budget": budget}, incumbent(losses))


def test_the_names_are_those_of_the_methods() -> None:
    assert set(CONTROLS) < set(METHODS)
    assert METHODS["frozen"].algorithm == METHODS[CONTROLLED].algorithm == CONTROLLED
    assert {name: method.follows for name, method in METHODS.items() if method.follows} == FOLLOWED
    tuning = {name for name, method in METHODS.items() if get_rule(method.algorithm).tunes}
    assert tuning - set(CONTROLS) == {CONTROLLED, *WITHOUT_CONTROLS}
    assert METHODS[START].algorithm == "fixed"


def test_shares_are_ratios_of_means_over_seeds_at_which_all_three_are() -> None:
    table = control_shares(incumbent(LOSSES))
    assert table.columns.tolist() == COLUMNS
    assert table["control"].tolist() == ["replayed", "last-values", "frozen"]  # no progress-ratio in this study
    rows = table.set_index("control")
    assert rows["n"].to_dict() == {"replayed": 3, "last-values": 2, "frozen": 3}
    assert rows["better"].to_dict() == {"replayed": 2, "last-values": 2, "frozen": 2}
    assert rows["gain"].to_dict() == pytest.approx({"replayed": 0.2, "last-values": 0.3, "frozen": 0.2})
    assert rows["share"].to_dict() == pytest.approx({"replayed": 1.0, "last-values": 1 / 3, "frozen": -1 / 6})
    assert [cell["share"] for cell in control_cells(table)] == ["100 %", "33 %", "-17 %"]
    assert [cell["positive at"] for cell in control_cells(table)] == ["2 of 3 seeds", "2 of 2 seeds", "2 of 3 seeds"]


def test_tasks_are_kept_apart() -> None:
    other = {name: {seed: 2 * loss for seed, loss in by_seed.items()} for name, by_seed in LOSSES.items()}
    table = control_shares(pd.concat([incumbent(LOSSES), incumbent(other, "u")]))
    assert table["task"].tolist() == ["t"] * 3 + ["u"] * 3
    assert table["gain"].tolist()[3:] == pytest.approx([2 * gain for gain in table["gain"].tolist()[:3]])


@pytest.mark.parametrize("loss", [0.9, 1.3])
def test_without_a_gain_there_are_words_instead_of_a_share(loss: float) -> None:
    losses = {**LOSSES, "auto": dict.fromkeys(range(3), loss), "frozen": dict.fromkeys(range(3), 0.1)}
    assert control_shares(incumbent(losses))["share"].isna().all()
    assert {cell["share"] for cell in control_cells(control_shares(incumbent(losses)))} == {"-"}
    first, second = said(losses, "progress-ratio")[:1], said(losses, "progress-ratio")[1:]
    assert first == [
        f"auto gained nothing over the start values: mean best validation loss {loss:g}, that of fixed 0.9 (3 seeds); "
        "so there is no gain to have a share of"
    ]
    assert second == []  # no warning about a share that there is not


@pytest.mark.parametrize(("frozen", "warned"), [(0.94, False), (0.9, True), (0.4, True)])
def test_a_gain_that_is_there_without_tuning_is_warned_of(frozen: float, warned: bool) -> None:
    losses = {"fixed": {0: 1.0}, "auto": {0: 0.6}, "replayed": {0: 0.6}, "last-values": {0: 0.6}, "frozen": {0: frozen}}
    words = said(losses, "progress-ratio")
    assert len(words) == warned
    if warned:
        assert words[0].startswith(f"warning: {(1 - frozen) / 0.4:.0%}".replace("%", " % of the gain of auto over the"))
        assert "without any tuning (frozen, 1 seed)" in words[0]


def test_what_a_study_lacks_is_said_in_a_line() -> None:
    (line,) = said({"fixed": {0: 1.0}, "auto": {0: 0.5}, "frozen": {0: 1.0}})
    assert "add replayed,last-values,progress-ratio to the methods" in line
    lines = said({"auto": {0: 0.5}, "random": {0: 1.0}})
    assert len(lines) == 2
    assert "over the start values is unknown here: add fixed to the methods" in lines[0]
    (line,) = said({"fixed": {0: 1.0}, "stn": {0: 0.5}, "delta-stn": {0: 0.5}})
    assert line.startswith("stn and delta-stn: no controls of their own in a study")
    assert said({"fixed": {0: 1.0}, "random": {0: 0.5}}) == []
    assert said({"stn": {0: 0.5}}, budget=None) == []  # of `tune-stn run`, which compares nothing


def test_controls_that_were_asked_for_and_failed_are_not_asked_for_again() -> None:
    assert said({"fixed": {0: 1.0}, "auto": {0: 0.5}}, *CONTROLS) == []
    assert said({}, "fixed", "auto", *CONTROLS) == []
    assert control_shares(incumbent({})).empty
    apart = control_shares(incumbent({"fixed": {0: 1.0}, "auto": {0: 0.5}, "frozen": {1: 1.0}}))
    assert apart["n"].tolist() == [0]
    assert math.isnan(apart["share"].item())
    assert control_cells(apart)[0]["gain"] == "-"


@pytest.fixture
def controlled(make_study: Callable[..., Path]) -> Results:
    """A study on disk with `auto` and three controls, whose shares are what they are."""
    kinds = {"auto": "self-tuned", "fixed": "constant", "replayed": "population", "frozen": "constant"}
    results = load_results(make_study(kinds=kinds))
    return replace(results, study=json.loads(json.dumps(results.study)))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_terminal_and_report_say_the_same(controlled: Results) -> None:
    pd.testing.assert_frame_equal(controlled.controls, control_shares(controlled.incumbent))
    text = format_controls(controlled)
    page = write_report(controlled).read_text()
    assert "What the gain of self-tuning is made of" in page
    lines: list[Any] = text.splitlines()
    assert lines[1].split()[:3] == ["method", "control", "gain"]
    assert [line.split()[1] for line in lines[3:5]] == ["replayed", "frozen"]
    for line in lines[5:]:
        assert line.replace("'", "&#39;") in page
    assert any("add last-values,progress-ratio to the methods" in line for line in lines)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_studies_without_self_tuning_say_nothing(make_study: Callable[..., Path]) -> None:
    results = load_results(make_study(kinds={"fixed": "constant", "random": "constant"}))
    assert format_controls(results) == ""
    assert "What the gain of self-tuning" not in write_report(results).read_text()


def test_device_time_of_what_follows_has_that_of_what_it_follows(controlled: Results) -> None:
    table = summary(controlled).set_index("method")["device_time_s"]
    reports = controlled.reports[controlled.reports["method"] == "replayed"]
    own = reports.groupby(["seed", "trial_id"])["device_time_s"].max().groupby("seed").sum().mean()
    assert table["replayed"] == pytest.approx(own + table["auto"])
    assert np.isfinite(table).all()
    assert format_summary(summary(controlled))
