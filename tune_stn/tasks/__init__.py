"""Tasks: data, model, loss, search space and start values."""

from tune_stn.tasks.registry import TASKS, get_task
from tune_stn.tasks.settings import Training
from tune_stn.tasks.task import Task, accuracy, mean_over_examples

__all__ = ["TASKS", "Task", "Training", "accuracy", "get_task", "mean_over_examples"]
