"""A task with data in its functions, stored once in Ray's object store, and named in configs by where it lies there."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle

from tune_stn.tasks.task import Task

MEGABYTE = 1_000_000
SHARED_FROM = 1 * MEGABYTE  # what is smaller travels in the config, and Tune saves it with each trial
WARNED_FROM = 10 * MEGABYTE


@dataclass(frozen=True)
class SharedTask:
    """Stands for a task in a trial's config. Plain data: results and saved states that hold it are read without Ray.

    Attributes:
        name: Name of the task.
        session: Ray session in which its object store lives.
        reference: Pickled `ray.ObjectRef` to the pickled task.
    """

    name: str
    session: str
    reference: bytes

    def fetch(self) -> Task:
        """The task; to be called in a trial's process."""
        # The object lives until the driver ends: Ray keeps what a reference pickled by hand leads to.
        task: Task = cloudpickle.loads(ray.get(cloudpickle.loads(self.reference)))
        return task


# By the id of a task, which is not hashable: so all trials of a task lead to one object, while the task lives.
_shared: dict[int, tuple[weakref.ref[Task], int, SharedTask]] = {}


def share(task: Task) -> SharedTask:
    """Store a task in Ray's object store, once in a session. Needs one. Warns of more than 10 MB."""
    return _share(task)[1]


def _share(task: Task, *, at_least: int = 0) -> tuple[int, SharedTask]:
    session = _session()
    known = _shared.get(id(task))
    if known is not None and known[0]() is task and known[2].session == session:
        return known[1:]
    pickled: bytes = cloudpickle.dumps(task)  # type: ignore[no-untyped-call]
    if len(pickled) < at_least:
        return len(pickled), SharedTask(task.name, session, b"")
    if len(pickled) > WARNED_FROM:
        warnings.warn(
            f"task {task.name!r} has {len(pickled) / MEGABYTE:.0f} MB of data in its functions: it is stored once in "
            "Ray's object store and copied into each trial's process. To have none of it sent around, name the task as "
            "'module:attribute', or load the data inside of the task's data function",
            stacklevel=2,
        )
    reference: bytes = cloudpickle.dumps(ray.put(pickled))  # type: ignore[no-untyped-call]
    shared = SharedTask(task.name, session, reference)
    _shared[id(task)] = weakref.ref(task, functools.partial(_forget, id(task))), len(pickled), shared
    return len(pickled), shared


def _forget(key: int, _: weakref.ref[Task]) -> None:
    _shared.pop(key, None)


def share_in(config: dict[str, Any]) -> None:
    """Replace the task in a trial's config, on the driver, by its place in the object store, if it is large.

    Raises:
        ValueError: the config comes from the saved state of an earlier session, and the object store with it is gone.
    """
    task = config.get("task")
    if not ray.is_initialized():
        return
    if isinstance(task, SharedTask) and task.session != _session():
        raise ValueError(
            f"task {task.name!r} was in the object store of a Ray session that is over: give the task again, by "
            "Tuner.restore(..., param_space={'task': task, ...}) as it was, or begin and restore the run with "
            "tune.with_parameters(STNTrainable, task=task)"
        )
    if isinstance(task, Task):
        size, shared = _share(task, at_least=SHARED_FROM)
        if size >= SHARED_FROM:
            config["task"] = shared


def sharing(request: Callable[..., Any]) -> classmethod[Any, ..., Any]:
    """A trainable's `default_resource_request`, which Tune calls with each new trial's config, that shares the task."""

    @functools.wraps(request)
    def wrapper(cls: type, config: dict[str, Any]) -> Any:
        resources = request(cls, config)
        share_in(config)
        return resources

    return classmethod(wrapper)


def _session() -> str:
    context = ray.get_runtime_context()
    return f"{context.get_node_id()}-{context.get_job_id()}"
