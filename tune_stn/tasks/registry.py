"""Finding a task by its name, with settings."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tune_stn.tasks.arguments import check_settings
from tune_stn.tasks.builtin import TASKS, check_task_name
from tune_stn.tasks.own_code import OwnCodeError, is_refusal, own_code
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task


def get_task(name: str | Task, **settings: Any) -> Task:
    """The task of that name, with settings of the task (`train_images=5000`) or of its training (`epochs=20`).

    Args:
        name: A built-in task, `module:attribute` naming a `Task` or a function that makes one (looked for in the
            current directory too), or a `Task`, which is given back with its settings applied.
        settings: Keyword arguments of the task's function, and fields of `Training`.

    Raises:
        ValueError: the task or a setting is unknown, or a setting's value is not accepted.
        OwnCodeError: the module or the function raised an exception; it is a ValueError, too.
    """
    made = name if isinstance(name, Task) else _find(name)
    own = [] if isinstance(made, Task) else _parameters(made)
    training_names = {f.name for f in fields(Training)}
    if unknown := [key for key in settings if key not in own and key not in training_names]:
        label = made.name if isinstance(made, Task) else name
        accepted = ", ".join([*own, *sorted(training_names)])
        raise ValueError(f"unknown setting {unknown[0]!r} of task {label!r}; accepted are {accepted}")
    if isinstance(made, Task):
        task = made
    else:
        given = check_settings(made, {key: value for key, value in settings.items() if key in own})
        try:
            task = made(**given)
        except (Exception, SystemExit) as error:
            if is_refusal(error):
                raise
            if name in TASKS:  # ours, so what it cannot do with is a setting
                raise ValueError(f"{_named(given)} of task {name!r}: not accepted ({error})") from error
            raise OwnCodeError(f"the function of task {name!r}", error) from error
    if not isinstance(task, Task):
        raise ValueError(f"{name!r} gave {type(task).__name__}, which is not a tune_stn.Task")
    overrides = {key: value for key, value in settings.items() if key in training_names and key not in own}
    try:
        return replace(task, training=replace(task.training, **overrides)) if overrides else task
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:  # a value of a kind nobody thought of
        raise ValueError(f"{_named(overrides)}: not accepted ({error})") from error


def _named(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def setting_names(name: str) -> tuple[str, ...]:
    """Names of the settings that `get_task` takes for a task; of an unknown one, those of every task's training."""
    try:
        made = _find(name)
    except (ValueError, ImportError):
        made = None
    own = [] if made is None or isinstance(made, Task) else _parameters(made)
    return (*own, *(f.name for f in fields(Training)))


def _find(name: str) -> Callable[..., Task] | Task:
    check_task_name(name)
    if name in TASKS:
        file, _, function = TASKS[name].partition(":")
        built_in: Callable[..., Task] = getattr(importlib.import_module(f"tune_stn.tasks.{file}"), function)
        return built_in
    module_name, _, attribute = name.partition(":")
    look_in(Path.cwd())
    try:
        with own_code("the module", name):
            module = importlib.import_module(module_name)
    except OwnCodeError as error:
        # Only the absence of the module asked for is a wrong option; one missing inside it is the user's traceback.
        absent = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if absent is None or not f"{module_name}.".startswith(f"{absent}."):
            raise
        raise ValueError(f"task {name!r}: there is no module {module_name!r} here or on the Python path") from None
    found = getattr(module, attribute, None)
    if not isinstance(found, Task) and not callable(found):
        raise ValueError(f"task {name!r}: {module_name} has no task or function {attribute!r}")
    return found


def look_in(folder: Path) -> None:
    """Have the modules of a folder found, too."""
    path = str(folder.absolute())
    if path not in sys.path:
        sys.path.insert(0, path)


def _parameters(factory: Callable[..., Task]) -> list[str]:
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
