"""What is worth a second look: each remark where it is due, and none elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from tune_stn.data import Split, Splits
from tune_stn.data.augment import ColourJitter
from tune_stn.nn.conversion import Conversion
from tune_stn.space import Integer, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.remarks import after, before, conversion_entry, conversion_words
from tune_stn.tasks import TASKS, Task, get_task
from tune_stn.tasks.settings import Training

SPACE = SearchSpace({"rate": Uniform(0.0, 0.9), "decay": LogUniform(1e-6, 1e-1), "holes": Integer(0, 5)})


def images(low: float = 0.0, high: float = 1.0) -> Splits:
    split = Split(torch.rand(100, 3, 4, 4) * (high - low) + low, torch.zeros(100, dtype=torch.int64))
    return Splits(split, split, split)


def task(**training: Any) -> Task:
    return Task(
        name="own",
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2)),
        data=lambda seed: images(),
        space=SearchSpace({"hue": Uniform(0.0, 0.5)}),
        start={"hue": 0.1},
        augmentations=(ColourJitter(hue="hue"),),
        training=Training(epochs=10, batch_size=20, **training),
    )


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("CosineAnnealingLR", {"T_max": 50}, "T_max=50, which are the 50 training steps of a run, but"),
        ("CosineAnnealingLR", {"T_max": 1000}, "T_max=1000, but it is stepped once an epoch and a run has 10"),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 50, "cycle_momentum": False}, "OneCycleLR has total_steps=50"),
        ("LinearLR", {"total_iters": 500}, "LinearLR has total_iters=500"),
        ("CosineAnnealingLR", {"T_max": 10}, ""),
        ("CosineAnnealingLR", {"T_max": 12}, ""),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 10, "cycle_momentum": False}, ""),
        ("ReduceLROnPlateau", {}, ""),
        ("StepLR", {"step_size": 5}, ""),
        (None, {}, ""),
    ],
)  # fmt: skip
def test_a_schedule_made_for_steps_is_noticed(name: str | None, arguments: dict[str, Any], words: str) -> None:
    found = before(task(lr_schedule=name, lr_schedule_args=arguments), images())
    assert len(found) == bool(words)
    assert all(words in one for one in found)


@pytest.mark.parametrize(
    ("low", "high", "noticed"), [(0, 1, 0), (-0.04, 1.04, 0), (-2, 2, 1), (0, 255, 1), (0, 0.5, 0)]
)
def test_colour_jitter_of_other_pixels_is_noticed(low: float, high: float, noticed: bool) -> None:
    found = before(task(), images(low, high))
    assert len(found) == noticed
    assert all("ColourJitter clamps pixels to [0, 1]" in one for one in found)


def test_colour_jitter_that_knows_how_pixels_were_normalised_is_right() -> None:
    plain = task()
    jitter = ColourJitter(hue="hue", mean=(0.5,) * 3, std=(0.25,) * 3)
    assert before(replace(plain, augmentations=(jitter,)), images(-2, 2)) == []


@pytest.mark.parametrize("name", ["digits-mlp", "text-lstm"])
def test_built_in_tasks_are_above_remark(name: str) -> None:
    assert name in TASKS
    made = get_task(name)
    assert before(made, made.data(0)) == []


def reports(losses: list[float], *, method: str = "stn", status: str = "finished", **hp: float) -> pd.DataFrame:
    """A study of one trial with these validation losses and last values."""
    epochs = range(1, len(losses) + 1)
    values = {"hp/rate": 0.4, "hp/decay": 1e-3, "hp/holes": 2, **{f"hp/{name}": value for name, value in hp.items()}}
    rows: dict[str, Any] = {"task": "own", "method": method, "seed": 1, "trial_id": "a", "epoch": epochs}
    rows |= {"report_index": range(len(losses)), "segment": ""}
    rows |= {"val_loss": losses, "test_loss": losses, "cost_total": epochs, "wall_time_s": epochs, **values}
    return pd.DataFrame({**rows, "status": ["running"] * (len(losses) - 1) + [status]})


def found_after(frame: pd.DataFrame) -> list[str]:
    return after(SPACE, frame, best_so_far(frame))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, []),
        ({"rate": 0.899}, ["rate ends at the upper bound of its domain, 0.9, in the best trial of stn, seed 1"]),
        ({"rate": 0.85}, []),
        ({"decay": 1.05e-6}, ["decay ends at the lower bound of its domain, 1e-06"]),
        ({"decay": 1e-5}, []),
        ({"holes": 5, "rate": 0.0}, ["rate ends at the lower", "holes ends at the upper bound of its domain, 5"]),
    ],
)
def test_a_value_at_a_bound_is_noticed(values: dict[str, float], words: list[str]) -> None:
    found = found_after(reports([1.0, 0.5, 0.6], **values))
    assert len(found) == len(words)
    assert all(one.startswith(word) for one, word in zip(found, words, strict=True))
    assert all(
        found_after(reports([1.0, 0.5, 0.6], method=held, **values)) == [] for held in ("fixed", "early-dropout")
    )


def test_a_domain_without_bounds_has_none() -> None:
    space = SearchSpace({"rate": Normal(0.0, 1.0)})
    frame = reports([1.0, 0.5], rate=100.0)
    assert after(space, frame, best_so_far(frame)) == []


@pytest.mark.parametrize(
    ("losses", "status", "noticed"),
    [
        ([2.0 - 0.1 * epoch for epoch in range(12)], "finished", True),
        ([2.0 - 0.1 * epoch for epoch in range(12)], "stopped", False),  # by the budget, which says so itself
        ([1.0 - 1e-4 * epoch for epoch in range(12)], "finished", False),
        ([2.0 - 0.1 * epoch for epoch in range(11)] + [1.5], "finished", False),
        ([2.0, 1.0, 0.5], "finished", False),  # too few to tell
    ],
)
def test_a_loss_that_still_fell_is_noticed(losses: list[float], status: str, noticed: bool) -> None:
    found = found_after(reports(losses, status=status))
    assert len(found) == noticed
    assert all("of stn, seed 1 was still falling when its epochs were over" in one for one in found)


def test_a_study_without_a_value_has_no_remark() -> None:
    assert found_after(reports([float("nan")] * 12)) == []


def test_a_conversion_goes_through_json_as_it_is() -> None:
    conversion = Conversion({"0": "gate"}, {"1": "rate"}, {"2": "frozen"})
    words = conversion_words({"stn": conversion_entry(conversion)})
    assert words == {"stn": "0: response gate\n1: reads rate\n2: left plain (frozen)"}
