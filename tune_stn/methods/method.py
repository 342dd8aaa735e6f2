"""What a method is: how Ray Tune is to search and schedule the trials of one study run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import SearchAlgorithm, Searcher

    from tune_stn.space import SearchSpace
    from tune_stn.tasks.task import Task
    from tune_stn.training.schedule import Schedule

METRIC, MODE = "best_val_loss", "min"


@dataclass(frozen=True)
class Context:
    """What a method may use to plan a run.

    Attributes:
        task: The task to be tuned.
        budget: Cost of the whole run, in plain-epoch equivalents; may be infinite where `trials` is given.
        seed: Seed of the run; the method's own draws derive from it.
        slots: Number of trials that run at a time.
        trials: Number of trials asked for. Default None: as many as the budget pays.
        followed: Schedule of the best trial of the run that the method follows. Default None: it follows none.
    """

    task: Task
    budget: float
    seed: int
    slots: int
    trials: int | None = None
    followed: Schedule | None = None

    @property
    def epochs(self) -> int:
        """Epochs of a full trial."""
        return self.task.training.epochs

    @property
    def full_trials(self) -> int:
        """Full plain trials that the budget pays, the last perhaps in part."""
        return math.ceil(self.budget / self.epochs) if math.isfinite(self.budget) else (self.trials or 1)

    def samples(self, least_epochs: int) -> int:
        """Trials enough to spend the budget if each lasts only `least_epochs`: the budget ends the run, not this."""
        return self.trials or math.ceil(self.budget / least_epochs) + 1


def _first_come() -> TrialScheduler:
    from ray.tune.schedulers import FIFOScheduler  # here: what a method is must be known without Ray

    return FIFOScheduler()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Plan:
    """Arguments of `tune.run` that make the method.

    Attributes:
        search_alg: Searcher that proposes the trials' hyperparameters, under `config["hp"]`.
        samples: Largest number of trials; the budget usually ends the run before.
        scheduler: Scheduler that stops, pauses or clones trials. Default first come, first served.
        kept_checkpoints: Number of checkpoints kept of a trial. Default 2: the newest, and one more in case that one is
            damaged; more where other trials may still want them.
        hp: `config["hp"]`: constants, or Tune domains for `search_alg` to sample.
        config: Further entries of each trial's config. Default none.
    """

    search_alg: Searcher | SearchAlgorithm
    samples: int
    hp: dict[str, Any]
    scheduler: TrialScheduler = field(default_factory=_first_come)
    kept_checkpoints: int = 2
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to spend a budget on a task.

    Attributes:
        name: Name in tables and on the command line.
        description: One sentence that says what the method does.
        algorithm: Name of the update rule of its trials.
        plan: Function that makes the plan of one run. It raises ValueError where the method cannot search the task's
            space.
        follows: Name of the method whose finished run at the same seed this one is made from. Such a run comes after
            that one, gets the schedule of its best trial as `Context.followed`, and is charged with what it has spent:
            its `cost_total` and `wall_time_s` go on from there. Default None.
        restores: Whether a run cut off by a crash of the driver goes on from its trials' checkpoints; Ray Tune saves no
            scheduler, so a method whose scheduler has a memory starts the run again. Default True.
        settings: Settings that tell it from other methods of its name; `study.json` keeps them and `--resume` compares
            them. Default none.
        schedule: Schedule that its trials replay, where the method is made of one. Default None.
        hyper_steps: Whether its trials do the hyper-steps of their algorithm. Default True; False for a control without
            any.
    """

    name: str
    description: str
    algorithm: str
    plan: Callable[[Context], Plan]
    follows: str | None = None
    restores: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None
    hyper_steps: bool = True


def in_order(methods: Sequence[Method]) -> list[Method]:
    """The methods in the order in which they run at a seed: as given, but those that follow another one come last.

    Raises:
        ValueError: a method follows one that is not among them.
    """
    names = [method.name for method in methods]
    for method in methods:
        if method.follows is not None and method.follows not in names:
            raise ValueError(
                f"methods={names}: {method.name} is made from the run of {method.follows} at the same "
                f"seed, which is not asked for; add {method.follows}"
            )
    return sorted(methods, key=lambda method: method.follows is not None)


def start_point(task: Task) -> dict[str, float]:
    """The task's start values, as Ray Tune writes them."""
    return tune_values(task.space, task.space.check_values(task.start))


def tune_values(space: SearchSpace, values: Mapping[str, float]) -> dict[str, float]:
    """Values as Ray Tune writes them: integers of an integer domain as such."""
    domains = space.to_tune()
    return {name: domains[name].cast(value) for name, value in values.items()}
