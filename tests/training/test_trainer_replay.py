"""A schedule replayed on a plain network: the values of every step, the records, resume and refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tune_stn.data.batches import Batch
from tune_stn.space import Integer, SearchSpace, Uniform
from tune_stn.tasks import Task
from tune_stn.training import Trainer, load_state, save_state
from tune_stn.training.schedule import Schedule

MakeTask = Callable[..., Task]
Differences = Callable[[Trainer, Trainer], list[str]]


def watched(trainer: Trainer) -> list[dict[str, float]]:
    """The mean values at each training step, in a list that grows as the trainer runs."""
    seen: list[dict[str, float]] = []
    take_step = trainer.rule.train_step

    def step(batch: Batch) -> torch.Tensor:
        seen.append(trainer.model.hyper.mean_values())
        return take_step(batch)

    trainer.rule.train_step = step  # type: ignore[method-assign]
    return seen


def run(trainer: Trainer, epochs: int) -> list[dict[str, float]]:
    return [trainer.run_epoch() for _ in range(epochs)]


def table(trainer: Trainer) -> pd.DataFrame:
    return pd.DataFrame(trainer.schedule.columns(trainer.task.space, tuned=trainer.rule.tunes))


def two_dropouts(times: list[int], unit: Any = "step", interpolation: Any = "previous") -> Schedule:
    values = np.array([[0.1 * (number + 1), 0.01] for number in range(len(times))])
    return Schedule(("dropout", "decay"), np.array(times), values, unit, interpolation)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["stn", "delta-stn"])
@pytest.mark.parametrize("settings", [{}, {"train_steps": 1, "warmup_epochs": 1}, {"train_steps": 3}])
def test_a_replay_sets_the_means_of_every_step_of_the_run(
    make_task: MakeTask, algorithm: str, settings: dict[str, Any]
) -> None:
    tuned = Trainer(make_task(**settings), algorithm=algorithm)
    means = watched(tuned)
    run(tuned, 3)
    plain = Trainer(make_task(**settings), algorithm="fixed", schedule=Schedule.from_frame(table(tuned)))
    replayed = watched(plain)
    run(plain, 3)
    assert len(means) == 9
    assert means[0] != means[-1]
    assert replayed == means

    # Its records are those of the run, but for what was set after the last step.
    columns = ["step", "epoch", "hp", "value"]
    in_force = table(tuned)[lambda rows: rows["step"] < 9]
    pd.testing.assert_frame_equal(table(plain)[columns], in_force[columns])
    assert set(table(plain)["source"]) == {"replay"}
    assert table(plain)[["raw", "scale"]].isna().all(axis=None)


def test_the_dropout_of_a_step_is_the_schedules(make_task: MakeTask) -> None:
    """Seen by the network: at a rate of (nearly) 0 and of .9, an input is dropped (almost) never and mostly."""
    schedule = Schedule(("dropout",), np.array([0, 2, 3]), np.array([[0.0], [0.9], [0.0]]))
    trainer = Trainer(make_task(), algorithm="fixed", schedule=schedule)
    dropped: list[float] = []
    trainer.model.network[1].register_forward_hook(
        lambda module, inputs, output: (
            dropped.append(float((inputs[0] == 0).float().mean())) if module.training else None
        )
    )
    run(trainer, 2)
    assert [share > 0.7 for share in dropped[-6:]] == [False, False, True, False, False, False]
    assert [share for share in dropped[-6:] if share < 0.7] == [0] * 5


def test_by_epochs_and_between_the_records(make_task: MakeTask) -> None:
    by_epoch = Trainer(make_task(), algorithm="fixed", schedule=two_dropouts([0, 2], "epoch"))
    values = watched(by_epoch)
    reports = run(by_epoch, 3)
    assert [value["dropout"] for value in values] == pytest.approx([0.1] * 6 + [0.2] * 3)
    assert [report["hp/dropout"] for report in reports] == pytest.approx([0.1, 0.1, 0.2])
    assert table(by_epoch)[["step", "epoch"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [6, 1]]
    assert Schedule.from_frame(table(by_epoch)).per_epoch().times.tolist() == [0, 2]

    linear = Trainer(make_task(), algorithm="fixed", schedule=two_dropouts([0, 4], "step", "linear"))
    values = watched(linear)
    run(linear, 2)
    assert [value["dropout"] for value in values] == pytest.approx([0.1, 0.125, 0.15, 0.175, 0.2, 0.2])
    assert table(linear)["step"].drop_duplicates().tolist() == [0, 1, 2, 3, 4]


def test_an_integer_takes_whole_values_between_the_records(make_task: MakeTask) -> None:
    space = SearchSpace({"dropout": Uniform(0.0, 0.9), "input_scale": Uniform(0.0, 1.0), "decay": Integer(0, 4)})
    task = make_task(space=space, start={"dropout": 0.2, "input_scale": 0.1, "decay": 1}, lr=0.001)
    schedule = Schedule(("decay",), np.array([0, 5]), np.array([[0.0], [4.0]]), "step", "linear")
    trainer = Trainer(task, algorithm="fixed", schedule=schedule)
    values = watched(trainer)
    run(trainer, 2)
    assert [value["decay"] for value in values] == [0, 1, 2, 2, 3, 4]
    assert table(trainer).query("hp == 'decay'")["step"].tolist() == [0, 1, 2, 4, 5]


def test_what_the_schedule_does_not_name_stays(make_task: MakeTask) -> None:
    trainer = Trainer(make_task(), algorithm="fixed", hp={"input_scale": 0.4}, schedule=two_dropouts([0, 4]))
    values = watched(trainer)
    report = run(trainer, 2)[-1]
    assert [value["input_scale"] for value in values] == pytest.approx([0.4] * 6)
    assert report["hp/input_scale"] == pytest.approx(0.4)
    assert report["hp/dropout"] == pytest.approx(0.2)


def test_a_constant_schedule_is_a_fixed_run(make_task: MakeTask, differences: Differences) -> None:
    fixed = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.3})
    replayed = Trainer(make_task(), algorithm="fixed", schedule=Schedule.constant({"dropout": 0.3}))
    for one, other in zip(run(fixed, 2), run(replayed, 2), strict=True):
        assert {**one, "device_time_s": 0} == {**other, "device_time_s": 0}
    assert set(differences(fixed, replayed)) == {"/schedule/sources/0", "/hp/dropout"}


def test_a_replay_costs_what_plain_training_costs(make_task: MakeTask) -> None:
    trainer = Trainer(make_task(), algorithm="fixed", schedule=two_dropouts([0, 1, 2, 3, 4]))
    reports = run(trainer, 2)
    plain = run(Trainer(make_task(), algorithm="fixed"), 2)
    assert [report["cost"] for report in reports] == [report["cost"] for report in plain]


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize("epochs_before", [1, 2])
def test_resumed_is_uninterrupted_to_the_bit(
    make_task: MakeTask, differences: Differences, tmp_path: Path, unit: str, epochs_before: int
) -> None:
    schedule = two_dropouts([0, 2, 3, 4, 7] if unit == "step" else [1, 2, 3], unit)
    whole = Trainer(make_task(), algorithm="fixed", schedule=schedule)
    run(whole, 4)
    first = Trainer(make_task(), algorithm="fixed", schedule=schedule)
    run(first, epochs_before)
    save_state(first.state_dict(), tmp_path / "state.pt")
    resumed = Trainer(make_task(), algorithm="fixed", schedule=schedule)
    resumed.load_state_dict(load_state(tmp_path / "state.pt"))
    assert not differences(first, resumed)
    run(resumed, 4 - epochs_before)
    assert not differences(whole, resumed)


def test_a_restarted_epoch_follows_the_schedule_anew(make_task: MakeTask) -> None:
    trainer = Trainer(make_task(restarts=1), algorithm="fixed", schedule=two_dropouts([0, 3, 4, 5]))
    run(trainer, 1)
    plain_loss, calls = trainer.task.loss, []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return plain_loss(outputs, targets) * (float("nan") if len(calls) == 1 else 1.0)

    trainer.task = trainer.forward.task = replace(trainer.task, loss=loss)
    run(trainer, 1)
    assert trainer.restarts == 1
    assert trainer.schedule.steps == [0, 3, 4, 5]


def test_a_copied_checkpoint_with_new_constants_is_recorded(make_task: MakeTask) -> None:
    """As under PBT: then the records are the schedule that led to the weights."""
    parent = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.1})
    run(parent, 1)
    child = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.5})
    run(child, 1)
    child.load_state_dict(parent.state_dict())
    run(child, 1)
    again = Trainer(make_task(), algorithm="fixed", hp={"dropout": 0.5})
    again.load_state_dict(child.state_dict())
    for trainer in (child, again):
        schedule = Schedule.from_frame(table(trainer)).select("dropout")
        assert schedule.times.tolist() == [0, 3]
        assert schedule.values[:, 0].tolist() == pytest.approx([0.1, 0.5])
        assert schedule.epochs is not None
        assert schedule.epochs.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("schedule", "algorithm", "words"),
    [
        (Schedule.constant({"dropout": 0.2}), "stn", "'stn' makes a schedule of its own.*'fixed'"),
        (Schedule.constant({"dropout_9": 0.2}), "fixed", "'dropout_9'.*it has dropout, input_scale, decay"),
        (
            Schedule.constant({"dropout": 0.95}),
            "fixed",
            r"'dropout' of the schedule is 0.95 at step 0, outside \[0, 0.9\]",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused_at_once(
    make_task: MakeTask, schedule: Schedule, algorithm: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Trainer(make_task(data=lambda seed: pytest.fail("data were loaded")), algorithm=algorithm, schedule=schedule)
