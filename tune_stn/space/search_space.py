"""The search space: named domains, one for every method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

from tune_stn.space.domains import Domain

# They steer the training, they are not in the validation loss, so it has no gradient with respect to them.
NOT_TUNABLE = frozenset(
    [
        "lr",
        "learning_rate",
        "learningrate",
        "momentum",
        "nesterov",
        "betas",
        "batch_size",
        "batchsize",
        "optimizer",
        "epochs",
        "steps",
        "warmup",
        "warmup_steps",
        "warmup_epochs",
        "seed",
    ]
)


class SearchSpace(Mapping[str, Domain]):
    """An immutable mapping from hyperparameter name to domain.

    Args:
        domains: Name -> domain, in the order in which the tunable state holds them.
        per_batch: Names whose draw is shared by the examples of a batch, because the batch shares the thing they
            regulate (DropConnect, say). Default none: each example has draws of its own.
        fixed: Name -> value of hyperparameters that are read, but not tuned by any method (see `fix`); they are not
            among the domains. Default none.

    Raises:
        ValueError: the space is empty, a name cannot be the name of a column (`''`, `../x`), a name is both tuned and
            fixed, `per_batch` names an unknown hyperparameter, or
            a name means something that cannot be tuned by the gradient of the validation loss (learning rate,
            momentum, batch size).
        TypeError: a value is not a domain.

    Example:
        >>> SearchSpace({"dropout": Uniform(0, 0.9), "holes": Integer(0, 4)})
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        *,
        per_batch: Iterable[str] = (),
        fixed: Mapping[str, float] | None = None,
    ) -> None:
        if not domains:
            raise ValueError("the search space is empty: name at least one hyperparameter")
        for name, domain in domains.items():
            check_name(name)
            check_tunable(name)
            if not isinstance(domain, Domain):
                raise TypeError(
                    f"the domain of {name!r} is {domain!r}; accepted are Uniform, LogUniform, Integer, LogInteger "
                    "and Normal, or Ray Tune's domains through SearchSpace.from_tune"
                )
        self._domains = dict(domains)
        self.per_batch = frozenset(per_batch)
        if unknown := self.per_batch - self._domains.keys():
            raise ValueError(f"per_batch names {sorted(unknown)}, not in the space: {list(self._domains)}")
        self.fixed = dict(fixed or {})
        if both := self.fixed.keys() & self._domains.keys():
            raise ValueError(f"{sorted(both)[0]!r} is both tuned and fixed: leave it out of one of the two")

    def fix(self, values: Mapping[str, float]) -> SearchSpace:
        """The space without these hyperparameters, which are fixed at these values instead.

        Raises:
            ValueError: a value is outside its domain, a name is unknown, or nothing would be left to tune.
        """
        for name, value in values.items():
            if name not in self._domains:
                raise ValueError(f"unknown hyperparameter {name!r}; accepted are {', '.join(self._domains)}")
            if not self._domains[name].contains(float(value)):
                raise ValueError(f"fixed value {value:g} of {name!r} is outside {self._domains[name].describe()}")
        domains = {name: domain for name, domain in self.items() if name not in values}
        if not domains:
            raise ValueError("all hyperparameters would be fixed: leave at least one to tune")
        return SearchSpace(domains, per_batch=self.per_batch - values.keys(), fixed={**self.fixed, **values})

    @classmethod
    def from_tune(cls, domains: Mapping[str, Any], *, per_batch: Iterable[str] = ()) -> SearchSpace:
        """The same space from Ray Tune domains such as `tune.uniform(0, 0.9)`.

        Raises:
            ValueError: a domain has no raw coordinate (`tune.choice`, `tune.grid_search`, a sampling function).
            ImportError: Ray is not installed.
        """
        from tune_stn.space.ray_domains import domain_from_ray

        for name in domains:
            check_tunable(name)
        return cls({name: domain_from_ray(name, d) for name, d in domains.items()}, per_batch=per_batch)

    def to_tune(self) -> dict[str, Any]:
        """The same space as Ray Tune domains.

        Raises:
            ValueError: a domain is of a class of your own, which Ray Tune has no domain for.
            ImportError: Ray is not installed.
        """
        from tune_stn.space.ray_domains import domain_to_ray

        return {name: domain_to_ray(domain) for name, domain in self.items()}

    def check_values(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values in the order of the space, each checked against its domain.

        Raises:
            ValueError: a value is missing, unknown, not a number, or outside its domain; the message names the
                hyperparameter, the value and what is accepted.
        """
        for name in values:
            if name not in self._domains:
                check_tunable(name)
                raise ValueError(f"unknown hyperparameter {name!r}; this task has {', '.join(self._domains)}")
        if missing := [name for name in self._domains if name not in values]:
            raise ValueError(f"no start value for {', '.join(missing)}")
        for name, domain in self._domains.items():
            given: object = values[name]
            if isinstance(given, bool) or not isinstance(given, Real):  # numpy's numbers are fine
                raise ValueError(f"start value of {name!r} is {given!r}, which is not a number")
            value = float(given)
            if not domain.contains(value):
                raise ValueError(f"start value {value:g} of {name!r} is outside {domain.describe()}")
        return {name: float(values[name]) for name in self._domains}

    def __eq__(self, other: object) -> bool:
        """Whether names, domains, what is drawn for the batch and what is fixed are the same, in whatever order."""
        if not isinstance(other, Mapping):
            return NotImplemented
        per_batch, fixed = (other.per_batch, other.fixed) if isinstance(other, SearchSpace) else (frozenset(), {})
        return (self._domains, self.per_batch, self.fixed) == (dict(other), per_batch, fixed)

    def __getitem__(self, name: str) -> Domain:
        return self._domains[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def __repr__(self) -> str:
        fixed = f", fixed={self.fixed!r}" if self.fixed else ""
        return f"SearchSpace({self._domains!r}, per_batch={sorted(self.per_batch)!r}{fixed})"


def check_name(name: object) -> None:
    """Raise ValueError unless a hyperparameter can be called so, in tables, files and the paths of a config."""
    parts = name.split("/") if isinstance(name, str) else [""]
    usable = isinstance(name, str) and name.isprintable() and "\\" not in name
    if not usable or any(part != part.strip() or part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"the hyperparameter name {name!r}: accepted is a text such as 'dropout' or 'encoder/dropout', of "
            "printable characters without a backslash, its parts between slashes neither empty nor '.' nor '..'"
        )


def check_tunable(name: str) -> None:
    """Raise ValueError if `name` is a thing that a self-tuning network cannot tune by construction."""
    if name.lower().rpartition("/")[2].replace("-", "_").replace(" ", "_") in NOT_TUNABLE:
        raise ValueError(
            f"{name!r} cannot be tuned inside a run: it is not in the validation loss, so that loss has no gradient "
            "with respect to it. Put it in param_space beside 'hp' (not in the search space), where any Ray Tune "
            "searcher tunes it from outside"
        )
