"""Finding tasks: built-in ones by name, a user's own by module and attribute, both with settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tune_stn.tasks import TASKS, Task, get_task
from tune_stn.tasks.builtin import task_descriptions
from tune_stn.tasks.own_code import OwnCodeError

OWN = """
import torch
from torch import nn
from tune_stn.data.splits import Split, Splits
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task

def make(*, width=3, epochs_of_mine=7, **more):
    split = Split(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    return Task(
        name="own",
        model=lambda: nn.Sequential(nn.Dropout(), nn.Linear(2, width)),
        data=lambda seed: Splits(split, split, split),
        space=SearchSpace({"rate": Uniform(0, 0.9)}),
        start={"rate": 0.1},
        dropout={"0": "rate"},
        description=str(epochs_of_mine),
    )

task = make()
number = 3
def none(): return None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current directory, which is not on the Python path; the path and modules are put back."""
    name = f"own_task_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


@pytest.mark.parametrize("name", TASKS)
def test_built_in_names(name: str) -> None:
    task = get_task(name)
    assert isinstance(task, Task)
    assert task.name == name


def test_every_built_in_task_has_a_sentence() -> None:
    sentences = task_descriptions()
    assert list(sentences) == list(TASKS)
    assert all(sentence.endswith(".") or sentence.count(",") for sentence in sentences.values())
    assert all(20 < len(sentence) < 120 for sentence in sentences.values())
    assert len(set(sentences.values())) == len(TASKS)


def test_settings_of_the_task_and_of_its_training() -> None:
    plain = get_task("digits-mlp")
    task = get_task("digits-mlp", train_images=100, epochs=3, lr=0.5, response=4)
    assert len(task.data(0).train) == 100
    assert (task.training.epochs, task.training.lr, task.training.response) == (3, 0.5, 4)
    assert task.training.batch_size == plain.training.batch_size
    assert get_task("digits-mlp").training == plain.training != task.training


def test_a_task_itself_takes_training_settings() -> None:
    task = get_task("ridge")
    assert get_task(task) is task
    changed = get_task(task, epochs=7)
    assert changed.training.epochs == 7
    assert changed.space is task.space
    with pytest.raises(ValueError, match=r"unknown setting 'features' of task 'ridge'; accepted are accumulate, batch"):
        get_task(task, features=3)


@pytest.mark.parametrize("name", ["digits", "Ridge", "", "ridge "])
def test_unknown_task_lists_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="accepted are") as caught:
        get_task(name)
    assert f"unknown task {name!r}" in str(caught.value)
    assert all(known in str(caught.value) for known in (*TASKS, "module:attribute"))


def test_unknown_setting_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown setting 'train_image' of task 'digits-mlp'; accepted are") as caught:
        get_task("digits-mlp", epochs=3, train_image=5)
    for setting in ("train_images", "valid_images", "hidden", "epochs", "hyper_lr", "warmup_epochs"):
        assert setting in str(caught.value)


def test_wrong_value_of_a_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="epochs=0: accepted is an integer of 1 or more"):
        get_task("digits-mlp", epochs=0)


def test_own_task_and_factory_in_the_current_directory(own: str) -> None:
    task = get_task(f"{own}:task")
    assert task.name == "own"
    assert get_task(f"{own}:task", epochs=2).training.epochs == 2
    made = get_task(f"{own}:make", width=9, batch_size=2)
    assert made.model().get_parameter("1.weight").shape == (9, 2)
    assert made.training.batch_size == 2
    assert get_task(f"{own}:make", epochs_of_mine=1).description == "1"
    get_task(f"{own}:task")
    assert sys.path.count(str(Path.cwd())) == 1


@pytest.mark.parametrize(
    ("suffix", "settings", "message"),
    [
        (":nothing", {}, "has no task or function 'nothing'"),
        (":number", {}, "has no task or function 'number'"),
        (":", {}, "has no task or function ''"),
        (":none", {}, "gave NoneType, which is not a tune_stn.Task"),
        ("_absent:task", {}, "there is no module 'own_task.*_absent' here or on the Python path"),
        (".inner:task", {}, "there is no module"),
        (":task", {"width": 5}, "unknown setting 'width'"),
        (":make", {"wide": 5}, "unknown setting 'wide' of task 'own_task.*:make'; accepted are width, epochs_of_mine,"),
        (":make", {"more": 5}, "unknown setting 'more'"),
    ],
)
def test_wrong_own_task_is_refused(own: str, suffix: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_task(own + suffix, **settings)


@pytest.mark.parametrize("name", [":task", ".relative:task"])
def test_module_needs_its_full_name(name: str) -> None:
    with pytest.raises(ValueError, match="accepted is module:attribute with the full name of the module"):
        get_task(name)


def test_what_is_missing_inside_an_own_module_is_its_own_error(own: str) -> None:
    """Not "there is no such task": the user needs the name of the module that is really absent."""
    with pytest.raises(OwnCodeError, match="no_such_module_at_all") as caught:
        get_task(f"{own}_broken:task")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "import no_such_module_at_all" in caught.value.trace


@pytest.mark.parametrize("name", ["os:system", "builtins:exit", "antigravity:x", "os.path:join"])
def test_modules_of_pythons_own_make_no_task_and_are_not_run(name: str) -> None:
    with pytest.raises(ValueError, match="is a module of Python's own"):
        get_task(name)
