"""Losses and metrics over whole splits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tune_stn.data.splits import Splits
from tune_stn.space.tunable import Constants, Tunable
from tune_stn.tasks.task import Function, OfMean, Task, counted, is_mean_over_examples
from tune_stn.training.forward import Forward

# Numbers in the outputs of a split that are kept, to be evaluated together: a gigabyte.
MOST_KEPT = 2**28


@torch.no_grad()
def evaluate(
    forward: Forward, splits: Splits, which: Iterable[Literal["val", "test"]] = ("val", "test")
) -> dict[str, float]:
    """Loss and metrics at the mean hyperparameters, each of its whole split.

    Means over examples are added up batch by batch, each by what it counts; anything else is computed once, from the
    outputs of all batches. Of a text, whose batches go on one another, all are taken for means.

    Args:
        forward: The network, and how it is called.
        splits: The splits of the task.
        which: The splits to evaluate, by the first part of their keys. Default both.

    Returns:
        `val_loss`, `val_<metric>`, `test_loss`, `test_<metric>`, of the splits that are evaluated. The network is left
        in eval mode.

    Raises:
        ValueError: The outputs of a split are too many to be kept, or cannot be put together.
    """
    task, model = forward.task, forward.model
    model.eval()
    sample = model.mean_sample()
    metrics = {"loss": task.loss, **task.metrics}
    functions = {name: metric.mean if isinstance(metric, OfMean) else metric for name, metric in metrics.items()}
    report: dict[str, float] = {}
    for prefix in which:
        split = {"val": splits.valid, "test": splits.test}[prefix]
        # Each once: a metric may be a function of the loss.
        batches = iter(split.whole(task.training.eval_batch_size))
        carries = (first := next(batches)).carry is not None
        means = {f for f in functions.values() if carries or is_mean_over_examples(f)}
        totals, weights = dict.fromkeys(means, 0.0), dict.fromkeys(means, 0)
        others = set(functions.values()) - means
        kept: list[tuple[Any, Tensor]] = []
        for batch in chain([first], batches):
            outputs = forward.outputs(batch, sample)
            weight = batch.weight()
            for mean in means:
                own = counted(mean, batch.targets)
                if counts := weight if own is None else own:  # where all targets are ignored, a mean is none
                    totals[mean] += float(mean(outputs, batch.targets)) * counts
                    weights[mean] += counts
            if others:
                kept.append((outputs, batch.targets))
                _check_size(task, others, kept)
        whole = {f: float(f(*_together(task, others, kept))) for f in others}
        for name, metric in metrics.items():
            function = functions[name]
            count = weights.get(function, 0)
            value = whole[function] if function in whole else totals[function] / count if count else math.nan
            report[f"{prefix}_{name}"] = metric.function(value) if isinstance(metric, OfMean) else value
    return report


def _check_size(task: Task, functions: set[Function], kept: list[tuple[Any, Tensor]]) -> None:
    """Refuse to keep more than fits, by the first batch and the number of batches so far."""
    size = sum(leaf.numel() for leaf in tree_leaves(kept[0][0]) if isinstance(leaf, Tensor)) * len(kept)
    if size > MOST_KEPT:
        raise ValueError(
            f"{_names(functions)} of task {task.name!r} is evaluated on the outputs of a whole split, and these are "
            f"more than {MOST_KEPT} numbers: if it is a mean over examples, mark it with "
            "tune_stn.tasks.mean_over_examples"
        )


def _together(task: Task, functions: set[Function], kept: list[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """Outputs and targets of all batches, in containers like those of one."""
    if len(kept) == 1:
        return kept[0]
    leaves, (_, structure) = [tree_leaves(part) for part in kept], tree_flatten(kept[0])
    try:
        joined = [torch.cat(same) if isinstance(same[0], Tensor) else same[0] for same in zip(*leaves, strict=True)]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{_names(functions)} of task {task.name!r} is evaluated on the outputs of a whole split, and those of its "
            f"batches cannot be put together along the first axis ({error}): if it is a mean over examples, mark it "
            "with tune_stn.tasks.mean_over_examples"
        ) from error
    return tree_unflatten(joined, structure)  # type: ignore[no-any-return]


def _names(functions: set[Function]) -> str:
    return ", ".join(sorted(getattr(function, "__name__", type(function).__name__) for function in functions))


def hyper_report(hyper: Tunable | Constants) -> dict[str, float]:
    """The hyperparameters at the mean, `hp/<name>`, and their perturbation scales, `scale/<name>`, 0 for constants."""
    values = hyper.mean_values()
    scales = hyper.scale().tolist() if isinstance(hyper, Tunable) else [0.0] * len(values)
    return {f"hp/{name}": value for name, value in values.items()} | {
        f"scale/{name}": scale for name, scale in zip(values, scales, strict=True)
    }
