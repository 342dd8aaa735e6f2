"""The placebo check: hyperparameters without effect must leave training as it is.

A method that trains a placebo better than `fixed` does gains by something else than its hyperparameters: by a response
that is a faster optimizer, or by noise. What it gains there is no gain of tuning on the real task either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from tune_stn.data.augment import Augmentation, LabelAugmentation
from tune_stn.nn.penalties import Penalty
from tune_stn.space import Domain, LogUniform, SearchSpace, Uniform
from tune_stn.tasks.task import Task

HIGH, START = 1e-6, 5e-8
"""Upper end of a placebo's domain, and its start value: of a dropout, one unit in a million."""

Reader = TypeVar("Reader", Augmentation, LabelAugmentation, Penalty)


def placebo(task: Task) -> Task:
    """The same task with hyperparameters that do nothing: the project's placebo check.

    Hyperparameters without effect must leave training as it is, within the noise between seeds. Names, readers and
    their order stay, so every method does with a placebo what it does with the task; but each domain becomes
    `Uniform(0, 1e-6)`, with the start value 5e-8. So small a rate, strength or size of an augmentation changes nothing
    that matters, though at rates of 1e-6 a unit is dropped now and then.

    That needs hyperparameters of which 0 means nothing: all rates of dropout, and whatever else has a `Uniform` domain
    from 0 or below on, or a `LogUniform` one, without steps. What reads another one (the integers of `Cutout`) has no
    small values, so it is left out together with all hyperparameters that nothing else reads. What a space holds stays.

    Args:
        task: The task to copy.

    Returns:
        The task, named `<name>-placebo`.

    Raises:
        ValueError: no hyperparameter is left, as none has small values.

    Example:
        >>> compare(placebo(get_task("digits-mlp")), ["fixed", "auto"], budget=200, seeds=10, out="runs/placebo")
    """
    rates = {*task.dropout.values(), *task.weight_dropout.values()}
    stays = {name for name, domain in task.space.items() if name in rates or _has_small_values(domain)}
    gone = set(task.space) - stays
    augmentations = _without(task.augmentations, gone)
    label_augmentations = _without(task.label_augmentations, gone)
    penalties = _without(task.penalties, gone)
    read = set(rates)
    read.update(*(reader.names for reader in augmentations))
    read.update(*(reader.names for reader in label_augmentations))
    read.update(*(reader.names for reader in penalties))
    names = [name for name in task.space if name in read]
    if not names:
        raise ValueError(
            f"task {task.name!r} has no placebo: none of {', '.join(task.space)} has values so small that they do "
            "nothing; accepted is at least one rate of dropout, or Uniform domain from 0 on or LogUniform one without "
            "steps"
        )
    return replace(
        task,
        name=f"{task.name}-placebo",
        space=SearchSpace(
            dict.fromkeys(names, Uniform(0.0, HIGH)),
            per_batch=[name for name in names if name in task.space.per_batch],
            fixed=task.space.fixed,
        ),
        start=dict.fromkeys(names, START),
        augmentations=augmentations,
        label_augmentations=label_augmentations,
        penalties=penalties,
    )


def _has_small_values(domain: Domain) -> bool:
    if isinstance(domain, Uniform):
        return domain.step is None and domain.low <= 0 < domain.high
    return isinstance(domain, LogUniform) and domain.step is None


def _without(readers: Iterable[Reader], names: set[str]) -> tuple[Reader, ...]:
    """Those that read none of the names."""
    return tuple(reader for reader in readers if names.isdisjoint(reader.names))
