"""What a searcher reads in `param_space`: the domains in and beside `hp`, the task's start values; kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search import sample as ray_sample

# Tune's own searchers find the domains of a nested param_space with this; the public API has nothing for it.
from ray.tune.search.variant_generator import parse_spec_vars

from tune_stn.space.domains import KINDS, from_entry, to_entry
from tune_stn.space.ray_domains import domain_from_ray, domain_to_ray
from tune_stn.tasks.registry import get_task
from tune_stn.tasks.task import Task
from tune_stn.tuning.trainable import OWN_KEYS

# Tune shows a searcher (token, hash) in place of an object, or of a sampling function, in param_space.
HIDDEN = ("__ref_ph", "__fn_ph")
CONTAINERS: Mapping[str, Any] = {"choice": tune.choice, "list": list, "tuple": tuple}


def split_domains(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The domains in `config["hp"]` by name, and the other entries of a config that are or contain domains.

    Raises:
        ValueError: there is a `grid_search`, or a domain in `hp` that belongs to no name.
    """
    _, domains, grids = parse_spec_vars(dict(config))
    if grids:
        where = "/".join(map(str, grids[0][0]))
        raise ValueError(f"grid_search at {where!r} of param_space: a searcher makes no grid; give tune.choice instead")
    hp: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for path, domain in domains:
        if path[0] != "hp":
            outside[path[0]] = config[path[0]]
        elif len(path) == 2:
            hp[path[1]] = domain
        else:
            raise ValueError("param_space['hp']: accepted is a mapping from each hyperparameter's name to its domain")
    return hp, outside


def start_of_task(config: Mapping[str, Any], searched: Mapping[str, Any]) -> Mapping[str, float]:
    """Start values of the task of a trial with this config, made as the trial makes it but for what is searched.

    Raises:
        ValueError: the config does not name a task, or the task does not take its settings.
    """
    task = config.get("task")
    if not isinstance(task, (str, Task)):
        given = "no 'task'" if task is None else "a 'task' that is an object, which Tune hides from searchers"
        raise ValueError(
            f"STNSearch begins with the task's start values, but param_space has {given}: name the task ('digits-mlp', "
            "'module:attribute'), or give STNSearch(start=task.start), a value for each hyperparameter in 'hp'"
        )
    settings = {
        key: value
        for key, value in config.items()
        if key not in OWN_KEYS and key not in searched and not _is_hidden(value)
    }
    return get_task(task, **settings).start


def _is_hidden(value: object) -> bool:
    """Whether a setting is, or contains, something that Tune shows to trials only."""
    if isinstance(value, Mapping):
        return any(map(_is_hidden, value.values()))
    if isinstance(value, (list, tuple)):
        return value[:1] in [(token,) for token in HIDDEN] or any(map(_is_hidden, value))
    return False


def to_json(value: Any, name: str = "param_space") -> Any:
    """A part of `param_space`, domains and all, as what JSON can hold; `from_json` makes it again.

    Args:
        value: Part of `param_space` as Tune hands it to a searcher: dicts, lists, tuples, domains, strings and numbers.
        name: Name of the value in errors. Default "param_space".

    Raises:
        ValueError: there is a domain of another kind than Tune's numerical ones and `tune.choice`.
    """
    if isinstance(value, ray_sample.Categorical):
        return {"choice": [to_json(category, name) for category in value.categories]}
    if isinstance(value, ray_sample.Domain):
        domain: Any = domain_from_ray(name, value)
        return dict([to_entry(domain)])
    if isinstance(value, dict):
        return {"dict": [[key, to_json(entry, str(key))] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [to_json(entry, name) for entry in value]}
    return value


def from_json(value: Any) -> Any:
    """What `to_json` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in KINDS:
        return domain_to_ray(from_entry(kind, content))
    if kind == "dict":
        return {key: from_json(entry) for key, entry in content}
    return CONTAINERS[kind]([from_json(entry) for entry in content])
