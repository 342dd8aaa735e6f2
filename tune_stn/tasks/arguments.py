"""The arguments of a task, checked where they are given, each error in the words of the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from torch import nn

from tune_stn.data.splits import Splits
from tune_stn.space.search_space import SearchSpace
from tune_stn.tasks.settings import Training


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what is of the wrong kind.

    Args:
        name: Name of the task.
        arguments: Its fields, by name.

    Raises:
        ValueError: An argument is of another kind than it should be; the message says what to give.
    """
    for argument, problem in (
        ("model", _function_problem(arguments["model"], nn.Module, "model=lambda: MyNetwork(...)", seed=False)),
        ("data", _function_problem(arguments["data"], Splits, "data=lambda seed: Splits(...)", seed=True)),
        ("space", _kind_problem(arguments["space"], SearchSpace, "SearchSpace({'dropout': Uniform(0, 0.9)})")),
        ("training", _kind_problem(arguments["training"], Training, "Training(epochs=20, lr=0.1)")),
        ("start", _kind_problem(arguments["start"], Mapping, "a mapping, {'dropout': 0.1}")),
        *((paths, _paths_problem(arguments[paths])) for paths in ("dropout", "weight_dropout")),
        ("metrics", _metrics_problem(arguments["metrics"])),
        *((switch, _kind_problem(arguments[switch], bool, "True or False")) for switch in ("norms", "recurrent")),
        ("loss", _loss_problem(arguments["loss"])),
        *((readers, _readers_problem(arguments[readers])) for readers in READERS),
    ):
        if problem:
            raise ValueError(f"{argument} of task {name!r} {problem}")


READERS = ("augmentations", "label_augmentations", "penalties")


def check_splits(name: str, splits: object, when: str = "") -> Splits:
    """What a task's data gave, if it is three splits.

    Args:
        name: Name of the task.
        splits: What the data gave.
        when: More on the call, for the message. Default nothing.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(splits, Splits):
        return splits
    advice = "Splits.of(datasets, target=...)" if isinstance(splits, Mapping) else "Splits(train, valid, test)"
    raise ValueError(
        f"data of task {name!r} gave {_kind(splits)}{when}: give {advice}, each of them a Split(inputs, targets), a "
        "Text, or a Dataset or DataLoader"
    )


def check_network(name: str, network: object) -> nn.Module:
    """What a task's model gave, if it is a network.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(network, nn.Module):
        return network
    raise ValueError(f"model of task {name!r} gave {_kind(network)}: give a torch.nn.Module")


def check_sizes(**sizes: object) -> None:
    """Raise ValueError, naming it, unless each of the sizes of a network or a split is an integer of 1 or more."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r}: accepted is an integer of 1 or more")


_WORDS: Mapping[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
}


def check_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Hold settings of a task against what its function says that they are, where it says int, float, bool or str.

    Args:
        function: Makes the task.
        settings: Some of its arguments, by name.

    Returns:
        The settings; a number of numpy's as one of Python's.

    Raises:
        ValueError: One is of another kind; the message names it.
    """
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # what only a type checker understands, or none at all
        return plain
    for name, value in plain.items():
        hint = hints.get(name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        words = [_WORDS[kind] for kind in kinds if kind in _WORDS]
        if len(words) == len(set(kinds) - {NoneType}) and words and not any(_is_of(value, kind) for kind in kinds):
            accepted = " or ".join([*words, *(["none"] if NoneType in kinds else [])])
            raise ValueError(f"{name}={value!r}: accepted is {accepted}")
    return plain


def _is_of(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, (str, PathLike)) if kind is str else isinstance(value, kind)  # type: ignore[arg-type]


def _function_problem(given: object, made: type, example: str, *, seed: bool) -> str:
    if isinstance(given, made) or not callable(given):
        return f"is {_kind(given)}: give a function that makes one, so that every run has its own: {example}"
    try:
        inspect.signature(given).bind(*((0,) if seed else ()))
    except TypeError as error:
        called = "data(seed)" if seed else "model()"
        return f"is called as {called}, which its signature does not allow ({error}): {example}"
    except ValueError:  # of a function without a signature nothing is known
        return ""
    return ""


def _kind_problem(given: object, kind: type, example: str) -> str:
    return "" if isinstance(given, kind) else f"is {_kind(given)}: give {example}"


def _paths_problem(given: object) -> str:
    if not isinstance(given, Mapping):
        return f"is {_kind(given)}: give a mapping from path to hyperparameter"
    wrong = [one for pair in given.items() for one in pair if not isinstance(one, str)]
    return f"has {wrong[0]!r} in it: paths and hyperparameters are texts, {str(wrong[0])!r}" if wrong else ""


def _loss_problem(given: object) -> str:
    if isinstance(given, type):
        return f"is the class {given.__name__}: give an instance, {given.__name__}()"
    return "" if callable(given) else f"is {_kind(given)}: give a function of (outputs, targets)"


def _metrics_problem(given: object) -> str:
    if not isinstance(given, Mapping):
        return f"is {_kind(given)}: give a mapping from name to function"
    for name, metric in given.items():
        if not isinstance(name, str):
            return f"has the name {name!r}: give a text"
        if not (callable(metric) or callable(getattr(metric, "mean", None))):
            return f"has {_kind(metric)} for {name!r}: give a function of (outputs, targets), or an OfMean"
    return ""


def _readers_problem(given: object) -> str:
    if not isinstance(given, (tuple, list)):
        return f"is {_kind(given)}: give a tuple; of one thing, with a comma: (thing,)"
    wrong: list[Callable[..., Any] | object] = [one for one in given if not (callable(one) and hasattr(one, "names"))]
    return f"has {_kind(wrong[0])} in it, which reads no hyperparameter: it needs `names` and a call" if wrong else ""


def _kind(thing: object) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
