"""A placebo keeps the task and takes the effect of its hyperparameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from tune_stn.data.augment import Cutout, InputScale, LabelSmoothing
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import Integer, LogUniform, Normal, SearchSpace, Uniform
from tune_stn.tasks import TASKS, get_task
from tune_stn.tasks.task import Task
from tune_stn.testing import placebo
from tune_stn.training import Trainer

EPOCHS = 4


def losses(task: Task, value: float | None = None) -> list[float]:
    """Of a fixed run, at each epoch; at the start values, or with all hyperparameters at one value.

    Not the training loss, which has the penalty in it.
    """
    hp = {} if value is None else dict.fromkeys(task.space, value)
    trainer = Trainer(task, algorithm="fixed", hp=hp, seed=0)
    reports = [trainer.run_epoch() for _ in range(EPOCHS)]
    return [report[name] for report in reports for name in ("val_loss", "test_loss")]


@pytest.fixture
def task() -> Task:
    return get_task("digits-mlp", epochs=EPOCHS)


@pytest.mark.slow
def test_a_fixed_run_is_the_same_whatever_the_values(task: Task) -> None:
    """Such values that no unit happens to be dropped; at the upper end of the domain one may be, and little changes."""
    sham = placebo(task)
    expected = losses(sham)
    assert losses(sham, 0.0) == pytest.approx(expected, abs=1e-6, rel=0)
    assert losses(sham, 1e-8) == pytest.approx(expected, abs=1e-6, rel=0)
    assert losses(sham, 1e-6) == pytest.approx(expected, abs=1e-4, rel=0)
    assert losses(task, 0.1) != pytest.approx(losses(task), abs=1e-2, rel=0)  # of the task itself they do matter


def test_names_bindings_and_readers_stay(task: Task) -> None:
    sham = placebo(task)
    assert sham.name == "digits-mlp-placebo"
    assert list(sham.space) == list(task.space)
    assert set(sham.space.values()) == {Uniform(0.0, 1e-6)}
    assert set(sham.start.values()) == {5e-8}
    changed = {"name": task.name, "space": task.space, "start": task.start}
    assert replace(sham, **changed) == task  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TASKS)
def test_every_built_in_task_has_one(name: str) -> None:
    task = get_task(name)
    sham = placebo(task)
    assert set(sham.space) == {hp for hp in task.space if not hp.startswith("cutout")}
    assert sham.space.per_batch == task.space.per_batch
    assert not any(isinstance(one, Cutout) for one in sham.augmentations)
    assert sham.dropout == task.dropout


def make(domains: dict[str, object], **more: object) -> Task:
    fields = {"start": {"rate": 0.5, "scale": 1.0}} | more
    space = SearchSpace(domains)  # type: ignore[arg-type]
    return Task(
        name="mine",
        model=lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
        data=lambda seed: pytest.fail("no data is needed"),
        space=space,
        **{"dropout": {"1": "rate"}, "augmentations": (InputScale("scale"),)} | fields,  # type: ignore[arg-type]
    )


def test_a_rate_of_dropout_may_have_any_domain_for_its_small_values_do_nothing() -> None:
    task = make({"rate": Uniform(0.0, 0.75, 0.25), "scale": LogUniform(0.1, 2.0)})
    assert set(placebo(task).space) == {"rate", "scale"}


@pytest.mark.parametrize("domain", [Integer(0, 3), Uniform(0.0, 2.0, 0.5), Uniform(0.5, 2.0), Normal(1.0, 1.0)])
def test_what_has_no_small_values_goes_with_its_reader(domain: object) -> None:
    task = make({"rate": Uniform(0.0, 0.9), "scale": domain})
    sham = placebo(task)
    assert list(sham.space) == ["rate"]
    assert sham.augmentations == ()


def test_a_reader_goes_with_all_of_its_hyperparameters_but_those_that_others_read() -> None:
    domains = {"rate": Uniform(0.0, 0.9), "scale": Uniform(0.0, 1.0), "holes": Integer(0, 3), "decay": Uniform(0, 1)}
    readers = (Cutout("holes", "scale", max_holes=3), InputScale("scale"))
    task = make(
        {**domains, "smooth": Uniform(0.0, 0.2), "alone": Uniform(0.0, 8.0)},
        start={"rate": 0.1, "scale": 0.1, "holes": 1, "decay": 0.1, "smooth": 0.1, "alone": 1.0},
        augmentations=(*readers, Cutout("holes", "alone", max_holes=3)),
        label_augmentations=(LabelSmoothing("smooth", classes=2),),
        penalties=(WeightDecay("decay"),),
    )
    sham = placebo(task)
    assert list(sham.space) == ["rate", "scale", "decay", "smooth"]
    assert sham.augmentations == readers[1:]
    assert (sham.label_augmentations, sham.penalties) == (task.label_augmentations, task.penalties)


def test_what_is_fixed_stays_fixed(task: Task) -> None:
    tuned = task.tuning_only("dropout_1", "weight_decay")
    assert placebo(tuned).space.fixed == tuned.space.fixed


def test_a_task_without_small_values_is_refused() -> None:
    task = make({"scale": Integer(0, 3)}, start={"scale": 1}, dropout={})
    with pytest.raises(ValueError, match=r"task 'mine' has no placebo: none of scale has values so small"):
        placebo(task)
