"""Schedules from tables of runs, of trials and their ancestors, and from the policy files of Tune's PBT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tune_stn.training.schedule import Schedule


def row(trial: str, step: int, value: float, source: str = "fixed", parent: str | None = None, **more: Any) -> Any:
    """A row of a PBT run's schedule table, with epochs of 10 steps."""
    return {"trial_id": trial, "parent_trial_id": parent, "step": step, "epoch": step // 10, "hp": "rate"} | {
        "value": value,
        "source": source,
        **more,
    }


def one(times: list[int], values: list[float], unit: Any = "step", epochs: list[int] | None = None) -> Schedule:
    return Schedule(
        ("rate",), np.array(times), np.array(values)[:, None], unit, epochs=None if epochs is None else np.array(epochs)
    )


# Long tables ---------------------------------------------------------------------------------------------------------


def test_hyperparameters_keep_the_order_of_the_table_and_what_does_not_change_needs_no_row() -> None:
    table = pd.DataFrame(
        [(0, "b", 1.0), (0, "a", 0.1), (4, "a", 0.2), (6, "b", 2.0), (6, "a", 0.2)], columns=["step", "hp", "value"]
    )
    expected = Schedule(("b", "a"), np.array([0, 4, 6]), np.array([[1.0, 0.1], [1.0, 0.2], [2.0, 0.2]]))
    assert Schedule.from_frame(table) == expected
    by_epoch = table.rename(columns={"step": "epoch"})
    assert Schedule.from_frame(by_epoch) == Schedule(expected.names, expected.times, expected.values, "epoch")


def test_what_is_set_twice_at_a_time_has_the_later_value() -> None:
    table = pd.DataFrame([(0, "rate", 1.0), (4, "rate", 2.0), (4, "rate", 3.0)], columns=["step", "hp", "value"])
    assert Schedule.from_frame(table) == one([0, 4], [1.0, 3.0])


@pytest.mark.parametrize(("source", "epochs"), [("stn", [0, 1, 2]), ("replay", [0, 1, 2]), ("explore", [0, 0, 1])])
def test_epochs_are_those_that_begin_with_a_record(source: str, epochs: list[int]) -> None:
    """A hyper-step falls within its epoch, the last one at its end; a copy is made when its epoch begins."""
    table = pd.DataFrame([(0, 0), (5, 0), (10, 1)], columns=["step", "epoch"]).assign(hp="rate", value=0.5)
    if source == "explore":
        table = table[table["step"] != 5]
        epochs = [0, 1]
    assert Schedule.from_frame(table.assign(source=source)).epochs.tolist() == epochs  # type: ignore[union-attr]
    assert Schedule.from_frame(table).epochs is None


def test_the_trial_must_be_clear() -> None:
    labels = [("t", "stn", 0, "x"), ("t", "stn", 1, "y"), ("t", "pbt", 0, "z")]
    runs = [dict(zip(("task", "method", "seed", "trial_id"), label, strict=True)) for label in labels]
    rows = [run | {"step": 0, "hp": "rate", "value": number} for number, run in enumerate(runs)]
    table = pd.DataFrame(rows)
    assert Schedule.from_frame(table, trial_id="y") == one([0], [1.0])
    assert Schedule.from_frame(table, method="pbt") == one([0], [2.0])
    assert Schedule.from_frame(table, method="stn", seed=1) == one([0], [1.0])
    with pytest.raises(ValueError, match=r"3 trials: t stn 0 x, t stn 1 y, t pbt 0 z; choose one by trial_id=$"):
        Schedule.from_frame(table)
    with pytest.raises(ValueError, match="2 trials: t stn 0 x, t stn 1 y; choose"):
        Schedule.from_frame(table, method="stn")
    with pytest.raises(ValueError, match="no rows of trial_id 'w', but of: t stn 0 x"):
        Schedule.from_frame(table, trial_id="w")
    with pytest.raises(ValueError, match="no rows of method 'stn' and seed 2"):
        Schedule.from_frame(table, method="stn", seed=2)
    with pytest.raises(ValueError, match="no column 'seed' to choose by"):
        Schedule.from_frame(table.drop(columns="seed"), seed=0)
    with pytest.raises(ValueError, match="the table has no rows"):
        Schedule.from_frame(table[:0])


def test_many_trials_are_not_all_listed() -> None:
    table = pd.DataFrame([row(f"trial{number}", 0, 0.5) for number in range(40)])
    with pytest.raises(ValueError, match=r"40 trials: trial0, trial1, .*trial5 and 34 more; choose"):
        Schedule.from_frame(table)


# Lineage -------------------------------------------------------------------------------------------------------------

# In the order in which they were made. b copies a at step 20; a copies c at 30 and d at 50; c copies a at 40, after a's
# first copy; and a once more copies c, from where c was then.
PBT = [
    row("a", 0, 0.1),
    row("b", 0, 0.2),
    row("c", 0, 0.3),
    row("d", 0, 0.4),
    row("b", 20, 0.11, "explore", "a"),
    row("a", 30, 0.3, "exploit", "c"),
    row("c", 40, 0.31, "explore", "a"),
    row("a", 50, 0.41, "explore", "d"),
    row("b", 60, 0.42, "explore", "a"),
]


@pytest.mark.parametrize(
    ("trial", "times", "values"),
    [
        ("d", [0], [0.4]),
        ("c", [0, 30, 40], [0.3, 0.3, 0.31]),  # a's values, which were c's own until 30
        ("a", [0, 50], [0.4, 0.41]),  # nothing that was before the last copy
        ("b", [0, 50, 60], [0.4, 0.41, 0.42]),
    ],
)
def test_a_trials_schedule_is_that_which_led_to_its_weights(trial: str, times: list[int], values: list[float]) -> None:
    schedule = Schedule.from_frame(pd.DataFrame(PBT), trial_id=trial)
    assert schedule == one(times, values, epochs=[time // 10 for time in times])


def test_another_seeds_trials_are_no_ancestors() -> None:
    seeds = pd.concat([pd.DataFrame(PBT).assign(seed=0), pd.DataFrame(PBT).assign(seed=1, value=0.9)])
    assert Schedule.from_frame(seeds, trial_id="b", seed=0).values[:, 0].tolist() == [0.4, 0.41, 0.42]


def test_what_the_copied_trial_did_later_is_not_in_the_copy() -> None:
    """a, copied by b at step 60, afterwards copies c, which is at step 40 only."""
    rows = [row("a", 0, 0.1), row("b", 0, 0.2), row("c", 0, 0.3), row("b", 60, 0.12, "explore", "a")]
    table = pd.DataFrame([*rows, row("a", 40, 0.33, "explore", "c")])
    assert Schedule.from_frame(table, trial_id="b") == one([0, 60], [0.1, 0.12], epochs=[0, 6])


def test_lineage_of_self_tuning_trials_listed_trial_by_trial() -> None:
    """The copied trial may come after the copy in the table, and has changed its values in between."""
    child = [row("x", 0, 0.1, "start"), row("x", 10, 0.2, "stn"), row("x", 20, 0.6, "exploit", "y")]
    parent = [row("y", 0, 0.4, "start"), row("y", 15, 0.6, "stn"), row("y", 25, 0.7, "stn")]
    table = pd.DataFrame([*child, row("x", 25, 0.65, "stn"), *parent])
    expected = one([0, 15, 20, 25], [0.4, 0.6, 0.6, 0.65], epochs=[0, 2, 2, 3])
    assert Schedule.from_frame(table, trial_id="x") == expected
    assert Schedule.from_frame(pd.concat([table[4:], table[:4]]), trial_id="x") == expected


def test_a_copy_of_what_is_not_there_is_refused() -> None:
    table = pd.DataFrame(PBT)
    with pytest.raises(ValueError, match="lacks the rows of trial 'd' before step 50"):
        Schedule.from_frame(table[table["trial_id"] != "d"], trial_id="b")
    own = pd.DataFrame([row("x", 0, 0.1), row("x", 10, 0.2, "exploit")])
    for unknown in (own, own.drop(columns=["trial_id", "parent_trial_id"])):
        with pytest.raises(ValueError, match="does not say which"):
            Schedule.from_frame(unknown)


# Wide tables ---------------------------------------------------------------------------------------------------------


def test_a_report_closes_its_epoch() -> None:
    reports = pd.DataFrame({"epoch": [1, 2, 3], "step": [10, 20, 30], "hp/rate": [0.1, 0.2, 0.2], "val_loss": 1.0})
    assert Schedule.from_frame(reports) == one([0, 1, 2], [0.1, 0.2, 0.2], "epoch")
    by_iteration = reports.rename(columns={"epoch": "training_iteration"})
    assert Schedule.from_frame(by_iteration) == one([0, 1, 2], [0.1, 0.2, 0.2], "epoch")
    assert Schedule.from_frame(reports.drop(columns="epoch")) == one([10, 20, 30], [0.1, 0.2, 0.2])


def test_reports_repeated_after_a_failure_count_once() -> None:
    reports = pd.DataFrame({"epoch": [1, 2, 3, 2, 3], "hp/rate": [0.1, 0.2, 0.3, 0.2, 0.35]})
    assert Schedule.from_frame(reports) == one([0, 1, 2], [0.1, 0.2, 0.35], "epoch")


def test_reports_of_several_trials_are_told_apart() -> None:
    reports = pd.DataFrame({"trial_id": ["x", "y"], "epoch": 1, "hp/rate": [0.1, 0.2]})
    assert Schedule.from_frame(reports, trial_id="y") == one([0], [0.2], "epoch")
    with pytest.raises(ValueError, match="2 trials: x, y"):
        Schedule.from_frame(reports)


def test_reports_that_do_not_say_when_or_after_a_copy_are_refused() -> None:
    with pytest.raises(ValueError, match="neither epoch nor training_iteration nor step"):
        Schedule.from_frame(pd.DataFrame({"hp/rate": [0.1]}))
    copied = pd.DataFrame({"epoch": [1, 2], "hp/rate": [0.1, 0.2], "parent_trial_id": ["", "z"]})
    assert Schedule.from_frame(copied[:1]) == one([0], [0.1], "epoch")
    with pytest.raises(ValueError, match="copied another one"):
        Schedule.from_frame(copied)


# Policy files of Tune's PBT ------------------------------------------------------------------------------------------


def policy(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(rate: float, **more: Any) -> Any:
    return {"hp": {"rate": rate}, "lr": 0.1, "model": {"width": 8, "name": "cnn"}, "nesterov": True, **more}


def test_a_policy_file_is_walked_back_to_its_first_ancestor(tmp_path: Path) -> None:
    """As `PopulationBasedTrainingReplay` does: 2 copied 1, which had copied 0."""
    lines = [["1", "0", 4, 3, config(0.1), config(0.2)], ["2", "1", 8, 7, config(0.2), config(0.3)]]
    schedule = Schedule.from_pbt_policy(policy(tmp_path / "pbt_policy_x.txt", *lines))
    assert schedule.names == ("rate", "lr", "model/width")
    assert schedule.select("rate") == one([0, 3, 7], [0.1, 0.2, 0.3], "epoch")
    assert schedule.at(0) == {"rate": 0.1, "lr": 0.1, "model/width": 8.0}


def test_what_a_copy_has_overwritten_is_left_out(tmp_path: Path) -> None:
    """2 had copied 1 before, and then copied 0, which had copied nothing: the file went on with its old line."""
    lines = [["2", "1", 4, 3, config(0.8), config(0.9)], ["2", "0", 8, 7, config(0.2), config(0.3)]]
    schedule = Schedule.from_pbt_policy(policy(tmp_path / "pbt_policy_x.txt", *lines))
    assert schedule.select("rate") == one([0, 7], [0.2, 0.3], "epoch")


def test_names_are_those_that_every_config_has(tmp_path: Path) -> None:
    line = ["1", "0", 4, 3, config(0.1), config(0.2, momentum=0.9)]
    with pytest.raises(ValueError, match="'momentum' is a number in the new config of line 1, and not in the old"):
        Schedule.from_pbt_policy(policy(tmp_path / "p.txt", line))
    with pytest.raises(ValueError, match="no number is in its configs"):
        Schedule.from_pbt_policy(policy(tmp_path / "p.txt", ["1", "0", 4, 3, {"a": "x"}, {"a": "y"}]))


@pytest.mark.parametrize(
    "line", ['{"a": 1}', "[1, 2]", "no json", '["1", "0", 4, 3, 5, 6]', '["1", "0", 4, "x", {}, {}]']
)
def test_files_that_are_no_policy_are_named_with_the_line(tmp_path: Path, line: str) -> None:
    path = policy(tmp_path / "p.txt", ["1", "0", 4, 3, config(0.1), config(0.2)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"p.txt, line 2 is none of a policy file"):
        Schedule.from_pbt_policy(path)


def test_no_policy_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no policy file at .*pbt_policy"):
        Schedule.from_pbt_policy(tmp_path / "pbt_policy_x.txt")
    with pytest.raises(ValueError, match=r"is empty: the trial never changed.*Schedule.constant"):
        Schedule.from_pbt_policy(policy(tmp_path / "p.txt"))


@pytest.mark.parametrize("column", ["task", "trial_id", "parent_trial_id", "hp", "source", "a name"])
def test_half_a_character_is_refused_in_our_words(column: str) -> None:
    """A lone surrogate, which pandas cannot compare and no file can hold."""
    rows = {"task": "t", "trial_id": "a", "parent_trial_id": "b", "step": [0, 8], "epoch": 0, "hp": "x", "value": 0.5}
    frame = pd.DataFrame(rows | {"source": "stn", column: pd.Series(["\ud800"] * 2, dtype=object)})
    if column == "a name":
        names = [name if name != column else "hp/\ud800" for name in frame.columns]
        frame = frame.set_axis(pd.Index(names, dtype=object), axis=1)
    with pytest.raises(ValueError, match=r"'(hp/)?\\ud800'.*accepted are"):
        Schedule.from_frame(frame)
