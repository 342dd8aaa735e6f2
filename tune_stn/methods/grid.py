"""Grid search over full trials, Ray Tune's variant generator.

The points of one hyperparameter are the middles of equal shares of its domain, on the domain's own scale: two points of
[0, 1] are 1/4 and 3/4, two of [0.01, 100] on a log scale are 0.1 and 10. The first grid is the finest that the budget
pays in full beside the start values, but has two points of each hyperparameter at least; where the budget pays more
trials, the next finer grids follow. The points of a grid come in an order drawn from the seed: the budget ends the run,
and in the order of counting, a grid of many hyperparameters would end with most of them at their first point.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from ray.tune.search import BasicVariantGenerator

from tune_stn.methods.method import Context, Plan, start_point
from tune_stn.space import SearchSpace
from tune_stn.space.quantile import quantile

MOST_POINTS = 100_000  # they are listed before the run begins
LEAST_LEVELS = 2  # a grid of one point a hyperparameter searches nothing


def plan(context: Context) -> Plan:
    if context.full_trials > MOST_POINTS:
        trials = f"grid would run {context.full_trials:.4g} trials of {context.epochs} epochs"
        raise ValueError(f"budget={context.budget:g}: {trials}, and lists at most {MOST_POINTS}; give a smaller budget")
    space = context.task.space
    start = start_point(context.task)
    grids = _grids(space, _affordable_levels(len(space), context.full_trials - 1), random.Random(context.seed))
    points = [
        start,
        *itertools.islice((point for point in grids if point != start), min(context.samples(1), MOST_POINTS) - 1),
    ]
    search = BasicVariantGenerator(points_to_evaluate=[{"hp": point} for point in points], max_concurrent=context.slots)
    return Plan(search_alg=search, samples=len(points), hp=space.to_tune())


def _affordable_levels(hyperparameters: int, trials: int) -> int:
    """Points of each hyperparameter in the finest full grid of at most so many trials."""
    return next(n for n in itertools.count(LEAST_LEVELS) if (n + 1) ** hyperparameters > trials)


def _grids(space: SearchSpace, levels: int, generator: random.Random) -> Iterator[dict[str, float]]:
    """The points of the grid of `levels`, then of ever finer ones, until a finer one has no other points."""
    domains = space.to_tune()
    coarser: dict[str, list[float]] = {}
    for count in itertools.count(levels):
        shares = [(i + 0.5) / count for i in range(count)]
        values = {
            name: sorted({domains[name].cast(quantile(domain, share)) for share in shares})
            for name, domain in space.items()
        }
        if values == coarser:
            return
        for point in _shuffled(list(values.values()), generator):
            yield dict(zip(values, point, strict=True))
        coarser = values


def _shuffled(values: list[list[float]], generator: random.Random) -> Iterator[tuple[float, ...]]:
    """Every point of a grid, each once, in random order: drawn, because the grids of large spaces cannot be listed."""
    size = math.prod(map(len, values))
    seen: set[tuple[float, ...]] = set()
    while len(seen) < size:
        point = tuple(map(generator.choice, values))
        if point not in seen:
            seen.add(point)
            yield point
