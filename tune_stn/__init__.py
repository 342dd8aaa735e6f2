"""Self-Tuning Networks for Ray Tune.

The names below are loaded when first used: importing the package is fast, does not start Ray, and the core (space, nn,
data, tasks, training) works where Ray is absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tune_stn.lazy import names_of

if TYPE_CHECKING:
    __version__: str
    from tune_stn.nn.self_tuning import self_tuning
    from tune_stn.space.domains import Integer, LogInteger, LogUniform, Normal, Uniform
    from tune_stn.space.search_space import SearchSpace
    from tune_stn.study.compare import compare
    from tune_stn.study.results import load_results
    from tune_stn.study.trained import load_model
    from tune_stn.tasks.registry import get_task
    from tune_stn.tasks.settings import Training
    from tune_stn.tasks.task import Task
    from tune_stn.training.schedule import Schedule
    from tune_stn.training.self_tuner import SelfTuner
    from tune_stn.training.trainer import Trainer
    from tune_stn.tuning.cluster import Cluster
    from tune_stn.tuning.recording.recorder import Recorder
    from tune_stn.tuning.schedule_replay import ScheduleReplay
    from tune_stn.tuning.scheduler import STNScheduler
    from tune_stn.tuning.search import STNSearch
    from tune_stn.tuning.trainable import STNTrainable

_HOMES = {
    "Cluster": "tune_stn.tuning.cluster",
    "Integer": "tune_stn.space.domains",
    "LogInteger": "tune_stn.space.domains",
    "LogUniform": "tune_stn.space.domains",
    "Normal": "tune_stn.space.domains",
    "Recorder": "tune_stn.tuning.recording.recorder",
    "STNScheduler": "tune_stn.tuning.scheduler",
    "STNSearch": "tune_stn.tuning.search",
    "STNTrainable": "tune_stn.tuning.trainable",
    "Schedule": "tune_stn.training.schedule",
    "ScheduleReplay": "tune_stn.tuning.schedule_replay",
    "SelfTuner": "tune_stn.training.self_tuner",
    "SearchSpace": "tune_stn.space.search_space",
    "Task": "tune_stn.tasks.task",
    "Trainer": "tune_stn.training.trainer",
    "Training": "tune_stn.tasks.settings",
    "Uniform": "tune_stn.space.domains",
    "compare": "tune_stn.study.compare",
    "get_task": "tune_stn.tasks.registry",
    "load_model": "tune_stn.study.trained",
    "load_results": "tune_stn.study.results",
    "self_tuning": "tune_stn.nn.self_tuning",
}

__all__ = [
    "Cluster",
    "Integer",
    "LogInteger",
    "LogUniform",
    "Normal",
    "Recorder",
    "STNScheduler",
    "STNSearch",
    "STNTrainable",
    "Schedule",
    "ScheduleReplay",
    "SearchSpace",
    "SelfTuner",
    "Task",
    "Trainer",
    "Training",
    "Uniform",
    "compare",
    "get_task",
    "load_model",
    "load_results",
    "self_tuning",
]


_load = names_of(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    return _load(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "__version__"])
