"""The built-in tasks by name: where each is, and what it says of itself, without loading any."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

# Name -> file of this folder and function in it. A new task is one file and one line here.
TASKS: Mapping[str, str] = {
    "ridge": "ridge:ridge",
    "digits-mlp": "digits_mlp:digits_mlp",
    "fashion-mnist-mlp": "fashion_mnist:fashion_mnist_mlp",
    "fashion-mnist-cnn": "fashion_mnist:fashion_mnist_cnn",
    "cifar10-alexnet": "cifar10_alexnet:cifar10_alexnet",
    "cifar10-vgg16": "cifar10_vgg16:cifar10_vgg16",
    "cifar10-resnet18": "cifar10_resnet18:cifar10_resnet18",
    "text-lstm": "text_lstm:text_lstm",
    "text-transformer": "text_transformer:text_transformer",
    "ptb-lstm": "ptb_lstm:ptb_lstm",
}


def check_task_name(name: str) -> None:
    """Refuse what names no task, whatever there is in modules of the user's own.

    Raises:
        ValueError: It is neither a built-in task nor `module:attribute`.
    """
    if name in TASKS:
        return
    if ":" not in name:
        raise ValueError(f"unknown task {name!r}; accepted are {', '.join(TASKS)}, or your own as module:attribute")
    module = name.partition(":")[0]
    if not module or module.startswith("."):
        raise ValueError(f"task {name!r}: accepted is module:attribute with the full name of the module")
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names and not any(Path(own).exists() for own in (f"{top}.py", top)):
        raise ValueError(
            f"task {name!r}: {top!r} is a module of Python's own, which makes no task; accepted is module:attribute of "
            "a module of yours"
        )


def task_descriptions() -> dict[str, str]:
    """Built-in task -> a sentence: the first line of its docstring, read and not imported, for that takes seconds."""
    return {name: _docstring(*home.split(":")).splitlines()[0] for name, home in TASKS.items()}


def _docstring(file: str, function: str) -> str:
    tree = ast.parse(Path(__file__).with_name(f"{file}.py").read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return ast.get_docstring(found) or ""
