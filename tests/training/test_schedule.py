"""A schedule as data: its values at any time, and its ways through frames and files."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from tune_stn.space import Integer, SearchSpace, Uniform
from tune_stn.training.schedule import INTERPOLATIONS, UNITS, Schedule


def make(times: Any, values: Any, *words: Any, names: Any = ("a", "b"), **more: Any) -> Schedule:
    return Schedule(names, np.array(times), np.array(values), *words, **more)


STEPS = make([2, 5, 6], [[0.1, 1.0], [0.4, 1.0], [0.4, 3.0]])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Of one or two hyperparameters, few distinct values, gaps between the records; with epochs or without."""
    times = sorted(draw(st.sets(st.integers(0, 30), min_size=1, max_size=8)))
    number = st.sampled_from([0.0, 0.1, 1 / 3, 1.0, -7.25, 1e-300])
    names = ("a", "b")[: draw(st.integers(1, 2))]
    values = draw(st.lists(st.lists(number, min_size=len(names), max_size=len(names)), min_size=8, max_size=8))
    unit = draw(st.sampled_from(UNITS))
    epochs = None
    if unit == "step" and draw(st.booleans()):
        length = draw(st.integers(1, 9))
        epochs = np.array([-(-time // length) for time in times])
    schedule = make(times, values[: len(times)], unit, draw(st.sampled_from(INTERPOLATIONS)), names=names)
    return replace(schedule, epochs=epochs)


# Values --------------------------------------------------------------------------------------------------------------


def test_each_record_holds_from_its_time_on() -> None:
    expected = [(0.1, 1.0)] * 5 + [(0.4, 1.0)] + [(0.4, 3.0)] * 4
    assert [tuple(STEPS.at(time).values()) for time in range(10)] == expected
    assert STEPS.at(5.9) == {"a": 0.4, "b": 1.0}


def test_linear_goes_straight_from_record_to_record() -> None:
    linear = replace(STEPS, interpolation="linear")
    assert [linear.at(time)["a"] for time in range(8)] == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert linear.at(5.5)["b"] == 2.0


@given(schedules(), st.floats(-5, 40))
def test_a_value_lies_between_its_neighbours(schedule: Schedule, time: float) -> None:
    values = np.array(list(schedule.at(time).values()))
    before = schedule.values[max(np.searchsorted(schedule.times, time, side="right") - 1, 0)]
    after = schedule.values[min(np.searchsorted(schedule.times, time, side="left"), len(schedule.times) - 1)]
    assert (values >= np.minimum(before, after)).all()
    assert (values <= np.maximum(before, after)).all()


@given(schedules())
def test_records_are_met_exactly(schedule: Schedule) -> None:
    for time, values in zip(schedule.times.tolist(), schedule.values.tolist(), strict=True):
        assert list(schedule.at(time).values()) == values


@given(schedules())
def test_changes_are_enough_to_follow_it_and_no_more(schedule: Schedule) -> None:
    changes = schedule.changes()
    assert changes[0][0] == 0
    now: dict[str, float] = {}
    for time in range(35):
        now = dict(changes).get(time, now)
        assert now == schedule.at(time)
    assert all(one[1] != other[1] for one, other in pairwise(changes))


def test_iteration_goes_over_every_time_up_to_the_last_record() -> None:
    assert [time for time, _ in STEPS] == [0, 1, 2, 3, 4, 5, 6]
    assert [hp for _, hp in STEPS] == [STEPS.at(time) for time in range(7)]
    assert [(step, hp["a"], batch) for (step, hp), batch in zip(STEPS, "xyz", strict=False)] == [
        (0, 0.1, "x"),
        (1, 0.1, "y"),
        (2, 0.1, "z"),
    ]


def test_constant() -> None:
    constant = Schedule.constant({"rate": 0.3, "decay": 1})
    assert constant.changes() == [(0, {"rate": 0.3, "decay": 1.0})]
    assert constant.at(10**6) == {"rate": 0.3, "decay": 1.0}


# By epochs -----------------------------------------------------------------------------------------------------------


def test_per_epoch_takes_what_is_in_force_when_the_epoch_begins() -> None:
    """Epochs of 3 steps: they begin at 0, 3 and 6; the record at step 6 holds from the beginning of epoch 2."""
    assert STEPS.per_epoch(3) == make([0, 1, 2], [[0.1, 1.0], [0.1, 1.0], [0.4, 3.0]], "epoch")
    assert STEPS.per_epoch(4) == make([0, 1, 2], [[0.1, 1.0], [0.1, 1.0], [0.4, 3.0]], "epoch")
    assert STEPS.per_epoch(10) == make([0, 1], [[0.1, 1.0], [0.4, 3.0]], "epoch")


@pytest.mark.slow
@given(schedules().filter(lambda s: s.unit == "step" and s.interpolation == "previous"), st.integers(1, 9))
def test_known_epochs_are_as_good_as_their_length(schedule: Schedule, length: int) -> None:
    known = replace(schedule, epochs=-(-schedule.times // length))
    mine, other = known.per_epoch(), schedule.per_epoch(length)
    assert [mine.at(epoch) for epoch in range(40)] == [other.at(epoch) for epoch in range(40)]


def test_per_epoch_of_epochs_is_itself_and_of_unknown_ones_is_refused() -> None:
    epochs = replace(STEPS, unit="epoch")
    assert epochs.per_epoch() is epochs
    with pytest.raises(ValueError, match="give steps_per_epoch="):
        STEPS.per_epoch()
    with pytest.raises(ValueError, match="give steps_per_epoch="):
        replace(STEPS, epochs=np.array([1, 2, 2]), interpolation="linear").per_epoch()
    with pytest.raises(ValueError, match="steps_per_epoch=0"):
        STEPS.per_epoch(0)


# The record itself ---------------------------------------------------------------------------------------------------


def test_it_is_frozen_to_the_numbers_and_keeps_its_own() -> None:
    times = np.array([0, 4])
    schedule = Schedule(("a",), times, np.array([[1.0], [2.0]]))
    times[1] = 9
    assert schedule.times.tolist() == [0, 4]
    with pytest.raises(ValueError, match="read-only"):
        schedule.values[0] = 5
    with pytest.raises(FrozenInstanceError):
        schedule.unit = "epoch"  # type: ignore[misc]


def test_equal_is_what_has_equal_contents() -> None:
    same = copy.deepcopy(STEPS)
    assert same == STEPS
    assert hash(same) == hash(STEPS)
    others = [replace(STEPS, unit="epoch"), replace(STEPS, interpolation="linear"), STEPS.select("b", "a"), "STEPS"]
    others += [replace(STEPS, times=STEPS.times + 1), replace(STEPS, values=STEPS.values * 2)]
    assert all(other != STEPS for other in others)
    assert repr(STEPS) == "Schedule(a, b; 3 record(s), step 2 to 6)"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: make([], np.zeros((0, 2))), "one time at least"),
        (lambda: make([0, 1], [[0.0, 1.0]]), r"at 2 time\(s\) has values of shape \(1, 2\)"),
        (lambda: make([0], [0.0, 1.0]), r"of shape \(2,\)"),
        (lambda: make([0], [[0.0]]), r"of 2 hyperparameter\(s\)"),
        (lambda: make([0, 4, 4], np.zeros((3, 2))), "0, 4, 4.*increasing"),
        (lambda: make([5, 4], np.zeros((2, 2))), "5, 4.*increasing"),
        (lambda: make([-1], [[0.0, 0.0]]), "-1.*from 0"),
        (lambda: make([0.5], [[0.0, 0.0]]), "whole numbers"),
        (lambda: make([[0]], [[0.0, 0.0]]), "one for each record"),
        (lambda: make([0, 7], [[0.0, 0.0], [0.0, np.nan]]), "'b' is not finite at step 7"),
        (lambda: make([3], [[np.inf, 0.0]], "epoch"), "'a' is not finite at epoch 3"),
        (lambda: make([0], [[0.0, 0.0]], "batch"), "unit 'batch'.*step, epoch"),
        (lambda: make([0], [[0.0, 0.0]], "step", "cubic"), "'cubic'.*previous, linear"),
        (lambda: make([0], [[0.0, 0.0]], names=("a", "a")), "each once"),
        (lambda: make([0], np.zeros((1, 0)), names=()), "at least one"),
        (lambda: make([0, 3], np.zeros((2, 2)), epochs=[0, 0]), "first epoch that begins"),
        (lambda: make([0, 3], np.zeros((2, 2)), epochs=[0]), "first epoch that begins"),
        (lambda: make([1, 3], np.zeros((2, 2)), epochs=[2, 1]), "first epoch that begins"),
        (lambda: make([0, 3], np.zeros((2, 2)), "epoch", epochs=[0, 1]), "first epoch that begins"),
        (lambda: STEPS.select("c"), "no 'c'; it has a, b"),
    ],
)
def test_what_is_wrong_is_said(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_check_names_what_a_space_does_not_have() -> None:
    space = SearchSpace({"a": Uniform(0.0, 0.4), "b": Integer(0, 3), "other": Uniform(0.0, 1.0)})
    STEPS.check(space)
    with pytest.raises(ValueError, match="'c', which is not a hyperparameter of this task; it has a, b, other"):
        make([0], [[0.1, 0.0]], names=("a", "c")).check(space)
    with pytest.raises(ValueError, match=r"'a' of the schedule is 0.5 at step 7, outside \[0, 0.4\]"):
        make([0, 7], [[0.1, 0], [0.5, 1]]).check(space)


# Frames and files ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None)
@given(schedules())
def test_a_frame_brings_everything_back(schedule: Schedule) -> None:
    assert Schedule.from_frame(schedule.to_frame()) == schedule


@pytest.mark.parametrize("schedule", [STEPS, replace(STEPS, unit="epoch", interpolation="linear")])
def test_a_file_brings_everything_back(schedule: Schedule, tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    schedule.to_parquet(path)
    assert Schedule.from_parquet(path) == schedule
    assert Schedule.from_parquet(str(path)) == schedule
    assert Schedule.from_parquet(path.as_uri()) == schedule


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no schedule at .*nowhere.parquet"):
        Schedule.from_parquet(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match=r"is a directory; of a study, give the schedule.parquet"):
        Schedule.from_parquet(tmp_path)
    (tmp_path / "notes.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match=r"notes.parquet is damaged, or no Parquet file"):
        Schedule.from_parquet(tmp_path / "notes.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet: no schedule in a table of the columns x; accepted"):
        Schedule.from_parquet(tmp_path / "other.parquet")


# A result of Tune ----------------------------------------------------------------------------------------------------


class Checkpoint:
    """As much of `tune.Checkpoint` as is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def as_directory(self) -> Any:
        yield str(self.directory)


def test_a_result_gives_its_checkpoints_schedule_or_else_what_it_reported(tmp_path: Path) -> None:
    reports = pd.DataFrame({"training_iteration": [1, 2, 3], "hp/a": [0.1, 0.1, 0.2], "config/a": 9, "loss": 1.0})
    reported = make([0, 1, 2], [[0.1], [0.1], [0.2]], "epoch", names=("a",))
    checkpoint = Checkpoint(tmp_path)
    for without in (None, checkpoint):
        assert Schedule.from_result(SimpleNamespace(checkpoint=without, metrics_dataframe=reports)) == reported
    STEPS.to_parquet(tmp_path / "schedule.parquet")
    assert Schedule.from_result(SimpleNamespace(checkpoint=checkpoint, metrics_dataframe=reports)) == STEPS


@pytest.mark.parametrize("reports", [None, pd.DataFrame({"training_iteration": [1], "config/a": [0.1]})])
def test_a_result_without_a_schedule_says_what_to_do(reports: pd.DataFrame | None) -> None:
    with pytest.raises(ValueError, match=r"Report the values as hp/<name>.*from_pbt_policy"):
        Schedule.from_result(SimpleNamespace(checkpoint=None, metrics_dataframe=reports))


def test_integers_stay_integers(tmp_path: Path) -> None:
    """Whole values of those that are integers, from every source; what is in between two of them is no integer."""
    policy = tmp_path / "policy.txt"
    policy.write_text('["0", "1", 4, 4, {"width": 8, "rate": 1}, {"width": 16, "rate": 0.5}]\n')
    wide = pd.DataFrame({"epoch": [1, 5], "hp/width": [8, 16], "hp/rate": [1.0, 0.5]})
    for schedule in (Schedule.from_pbt_policy(policy), Schedule.from_frame(wide)):
        schedule.to_parquet(tmp_path / "schedule.parquet")
        again = Schedule.from_parquet(tmp_path / "schedule.parquet")
        assert again == schedule
        for one in (schedule, again, again.per_epoch(), again.select("rate", "width")):
            assert repr(sorted(one.at(4).items())) == "[('rate', 0.5), ('width', 16)]"
        linear = replace(again, interpolation="linear")
        assert repr([linear.at(time)["width"] for time in (0, 1, 1.25)]) == "[8, 10, 10.5]"
    assert repr(Schedule.constant({"width": 8, "rate": 1.0}).at(3)) == "{'width': 8, 'rate': 1.0}"
