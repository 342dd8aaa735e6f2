"""Tasks: data, model, loss, search space and start values."""

from typing import TYPE_CHECKING

from tune_stn.lazy import names_of
from tune_stn.tasks.builtin import TASKS

if TYPE_CHECKING:
    from tune_stn.tasks.registry import get_task
    from tune_stn.tasks.settings import Training
    from tune_stn.tasks.task import Task, accuracy, mean_over_examples

__all__ = ["TASKS", "Task", "Training", "accuracy", "get_task", "mean_over_examples"]

__getattr__ = names_of(
    __name__,
    {
        "Task": "tune_stn.tasks.task",
        "Training": "tune_stn.tasks.settings",
        "accuracy": "tune_stn.tasks.task",
        "get_task": "tune_stn.tasks.registry",
        "mean_over_examples": "tune_stn.tasks.task",
    },
)
