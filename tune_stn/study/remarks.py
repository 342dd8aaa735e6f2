"""What is worth a second look though nothing failed, each in a line: for the output, `study.json` and the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from tune_stn.data.augment import ColourJitter
from tune_stn.data.splits import Splits
from tune_stn.nn.conversion import Conversion
from tune_stn.space.search_space import SearchSpace
from tune_stn.study.domains import bounds_of, place
from tune_stn.tasks.task import Task
from tune_stn.training.tables import RUN_COLUMNS

LENGTHS = ("total_steps", "T_max", "total_iters")  # of torch's learning-rate schedules, in steps of their own
FAR_LONGER = 1.5  # times the epochs of a run, from which on such a length is not off by a few epochs only
SLACK = 0.05  # of pixels beyond [0, 1] that rounding and interpolation may make
AT_THE_BOUND = 0.02  # of the width of a domain
SHARE, FALL = 4, 0.01  # the last quarter of a run's epochs, and how much of the loss still fell in it
EXAMPLES = 64
# Methods that choose no last value themselves.
HELD = ("fixed", "frozen", "replay", "replayed", "last-values", "early-dropout")


def before(task: Task, splits: Splits) -> list[str]:
    """What the task and its data say before a run.

    Args:
        task: The task.
        splits: Its data; a few training examples are looked at.
    """
    return [*_of_lr_schedule(task, splits), *_of_colours(task, splits)]


def after(space: SearchSpace, reports: pd.DataFrame, incumbent: pd.DataFrame) -> list[str]:
    """What the results say.

    Args:
        space: Search space of the task.
        reports: The table of a study.
        incumbent: The table of a study, best-so-far.
    """
    best = incumbent.drop_duplicates(RUN_COLUMNS, keep="last")[[*RUN_COLUMNS, "trial_id"]]
    of_best: Any = reports.merge(best).groupby(RUN_COLUMNS, sort=False)
    ends = {(str(method), int(seed)): rows for (_, method, seed), rows in of_best}
    return [*_of_bounds(space, ends), *_of_falling_losses(ends)]


def conversion_entry(conversion: Conversion) -> dict[str, dict[str, str]]:
    """A conversion as `study.json` holds it: path -> response size, hyperparameter read, reason to be left plain."""
    return {"responding": conversion.responding, "bound": conversion.bound, "plain": conversion.plain}


def conversion_words(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The conversions of `study.json` for people: algorithm -> a line for each module."""
    return {algorithm: str(Conversion(**entry)) for algorithm, entry in entries.items()}


def _of_lr_schedule(task: Task, splits: Splits) -> Iterator[str]:
    training = task.training
    optimizer = training.make_optimizer([nn.Parameter(torch.zeros(()))])
    schedule = training.make_lr_schedule(optimizer)
    steps = training.epochs * splits.train.steps(training.batch_size)
    for name in LENGTHS:
        length = getattr(schedule, name, None)
        if isinstance(length, (int, float)) and length > FAR_LONGER * training.epochs:
            words = f", which are the {steps} training steps of a run" if length == steps else ""
            yield (
                f"lr_schedule: {type(schedule).__name__} has {name}={length:g}{words}, but it is stepped once an epoch "
                f"and a run has {training.epochs} epochs, so it hardly moves: count its length in epochs"
            )


def _of_colours(task: Task, splits: Splits) -> Iterator[str]:
    for jitter in task.augmentations:
        if not isinstance(jitter, ColourJitter):
            continue
        images = next(splits.train.batches(EXAMPLES, torch.Generator())).inputs
        mean, std = (torch.tensor(given).view(-1, 1, 1) for given in (jitter.mean, jitter.std))
        pixels = images.cpu() * std + mean
        low, high = float(pixels.min()), float(pixels.max())
        if low < -SLACK or high > 1 + SLACK:
            yield (
                f"ColourJitter clamps pixels to [0, 1], but with its mean={jitter.mean} and std={jitter.std} those of "
                f"the train split are in [{low:.3g}, {high:.3g}]: give it the mean and std that normalised them"
            )


def _of_bounds(space: SearchSpace, ends: Mapping[tuple[str, int], pd.DataFrame]) -> Iterator[str]:
    found: dict[tuple[str, str, float], list[tuple[str, int]]] = {}
    for (method, seed), reports in ends.items():
        for name, domain in space.items() if method not in HELD else ():
            bounds = bounds_of(domain)
            if bounds is None or f"hp/{name}" not in reports:
                continue
            low, high = bounds
            value = float(reports[f"hp/{name}"].iloc[-1])
            where = place(domain, value)
            if min(where, 1 - where) <= AT_THE_BOUND:
                side, bound = ("lower", low) if where < 0.5 else ("upper", high)
                found.setdefault((name, side, bound), []).append((method, seed))
    for (name, side, bound), runs in found.items():
        yield (
            f"{name} ends at the {side} bound of its domain, {bound:g}, in the best trial of {_named(runs)}: "
            "what is beyond may be better, if it is allowed"
        )


def _of_falling_losses(ends: Mapping[tuple[str, int], pd.DataFrame]) -> Iterator[str]:
    runs: list[tuple[str, int]] = []
    for (method, seed), reports in ends.items():
        losses = reports["val_loss"].to_numpy()
        last = len(losses) // SHARE
        if last < 2 or reports["status"].iloc[-1] != "finished" or losses.argmin() != len(losses) - 1:
            continue
        earlier, later = losses[-2 * last : -last].mean(), losses[-last:].mean()
        if earlier - later > FALL * abs(earlier):
            runs.append((method, seed))
    if runs:
        yield (
            f"the validation loss of the best trial of {_named(runs)} was still falling when its epochs were over: "
            "more epochs= may be better, and methods that learn slowly look worse than they are"
        )


def _named(runs: Iterable[tuple[str, int]]) -> str:
    """Runs in words, a method with all of its seeds: "auto, seed 3; stn, seeds 0 to 4 and 7"."""
    seeds: dict[str, list[int]] = {}
    for method, seed in runs:
        seeds.setdefault(method, []).append(seed)
    return "; ".join(f"{method}, seed{'s' * (len(some) > 1)} {_counted(some)}" for method, some in seeds.items())


def _counted(numbers: Iterable[int]) -> str:
    stretches: list[list[int]] = []
    for number in sorted(numbers):
        if stretches and number == stretches[-1][-1] + 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    words = [
        word
        for some in stretches
        for word in ([f"{some[0]} to {some[-1]}"] if len(some) > 2 else [str(number) for number in some])
    ]
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
