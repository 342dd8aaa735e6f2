"""A Ray Tune searcher for self-tuning trials."""

from __future__ import annotations

import base64
import json
import logging
import math
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher

# Random draws from a nested param_space, as Tune makes them; the public API has nothing for it.
from ray.tune.search.variant_generator import generate_variants

from tune_stn.checked import COUNT, FINITE, FLAG, NOTHING, TEXT, Shape, parse_json, read_whole
from tune_stn.files import whole_file
from tune_stn.training.seeds import derive_seed
from tune_stn.tuning.param_space import from_json, split_domains, start_of_task, to_json
from tune_stn.tuning.signature import NoKey, NotSealed, is_signed, key_path, own_key, sign
from tune_stn.tuning.start_values import Report, StartDomains

STATE_VERSION = 1
_VALUES = {"*": FINITE}
_STATE: Shape = {
    **{"version": COUNT, "seed": COUNT, "inner": (TEXT, NOTHING)},
    "space": (NOTHING, {"metric": TEXT, "mode": TEXT, "start": _VALUES, "hp": {}, "outside": {}}),
    "trials": {
        "*": {
            **{"start": _VALUES, "ended": FLAG, "failed": FLAG},
            "best": (NOTHING, {"loss": FINITE, "values": _VALUES, "scales": _VALUES}),
        }
    },
}
_INNER = "STNSearch.inner"
# Of nine restarts, at least one draws from everywhere in 92 % of runs, and most still go where trials ended well.
EXPLORE = 0.25

logger = logging.getLogger(__name__)


@dataclass
class _Trial:
    """What is known of a suggestion; `best` is None before the first report."""

    start: dict[str, float]
    best: Report | None = None
    ended: bool = False
    failed: bool = False


class STNSearch(Searcher):
    """Proposes start values (`config["hp"]`) for self-tuning trials, from where earlier trials ended.

    The first trial gets the task's own start values (the nearest members, where the domains of `hp` leave them out).
    For a later one, let the trials that ended be ordered by their best loss, let `m_i` be the raw coordinates of what
    trial `i` had tuned its values to at that report, and `sigma_i` its perturbation scales there. The suggestion is

        transform(m_c + s z),  z ~ N(0, 1),  P(c = i) = w_i,  w_i proportional to 1 / rank_i,
        s^2 = sigma_c^2 + sum_i w_i (m_i - sum_k w_k m_k)^2,  s at least 0.1,

    with a spread s for each hyperparameter: what the trial itself leaves open (its scale is wide where the loss hardly
    depends on the hyperparameter), and what the trials disagree on. Ranks, so neither the unit of the loss nor one very
    bad trial matters. A share `explore` of the suggestions is drawn from the domains instead: without them, trials
    would agree only because they began alike. Trials that failed or diverged are no centres. While none has ended, the
    running ones count, by their best report so far; before the first report, suggestions are drawn from the domains.

    Domains of `param_space` outside `hp` (learning rate, batch size, width) go to another searcher, which hears of all
    results. Most searchers judge a trial by its last report, so `metric="best_val_loss"` suits them better than
    `"val_loss"`; to this one it makes no difference.

    The draws of a suggestion depend on `seed` and its number alone, so the order in which trials end matters only by
    what is known at the time.

    Args:
        inner: Searcher for the domains outside `hp`, made without a search space (`OptunaSearch(seed=0)`). A
            `ConcurrencyLimiter` goes around this searcher, not inside. Default None: random draws.
        metric: Key of the loss by which trials are good. Default that of `TuneConfig`.
        mode: "min" or "max"; default that of `TuneConfig`.
        seed: Seed of the draws. Default a fresh one.
        explore: Share of the later suggestions that is drawn from the domains, from 0 to 1.
        start: Start values of the first trial. Default those of the task that `param_space` names; needed where it
            holds a `Task` itself, and for trainables of other kinds. (A trial that reports no `hp/<name>` counts with
            the values it started from.)

    Raises:
        ValueError: an argument is not accepted; or, as soon as Tune passes `param_space` on, the start values are not
            known, a domain in `hp` is not numerical, there is a `grid_search` or no metric, or the inner searcher
            cannot take its part.

    Example:
        >>> tune.Tuner(
        ...     STNTrainable,
        ...     param_space={"task": "digits-mlp", "hp": task.space.to_tune(), "lr": tune.loguniform(3e-3, 0.3)},
        ...     tune_config=tune.TuneConfig(
        ...         metric="best_val_loss", mode="min", search_alg=STNSearch(OptunaSearch()), num_samples=8
        ...     ),
        ... )
    """

    def __init__(
        self,
        inner: Searcher | None = None,
        *,
        metric: str | None = None,
        mode: str | None = None,
        seed: int | None = None,
        explore: float = EXPLORE,
        start: Mapping[str, float] | None = None,
    ) -> None:
        _check_inner(inner)
        _check_goal(metric, mode)
        if not 0 <= explore <= 1:
            raise ValueError(f"explore={explore!r}: accepted is a share from 0 to 1")
        super().__init__(metric=metric, mode=mode)
        self.inner = inner
        self.explore = explore
        self._given_start = start
        self._seed = secrets.randbits(63) if seed is None else seed
        self._trials: dict[str, _Trial] = {}
        # The search space as JSON, once it is known, and what it says: domains in `hp`, and random draws outside.
        self._space: dict[str, Any] | None = None
        self._domains: StartDomains
        self._outside: dict[str, Any]

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take the search space from `param_space`; False if there is one already."""
        if self._space is not None:
            return False
        metric, mode = metric or self._metric, mode or self._mode
        _check_goal(metric, mode)
        if metric is None or mode is None:
            raise ValueError(
                "STNSearch has to know which trials are good: give metric='best_val_loss', mode='min' to TuneConfig"
            )
        hp, outside = split_domains(config)
        start: Mapping[str, float] = {}
        if hp:
            start = start_of_task(config, outside) if self._given_start is None else self._given_start
        space = {"metric": metric, "mode": mode, "start": StartDomains(hp).nearest(start), "hp": to_json(hp)}
        if self.inner is not None:
            _bind(self.inner, metric, mode, outside)
            outside = {}
        self._take(space | {"outside": to_json(outside)})
        return True

    def suggest(self, trial_id: str) -> Any:
        """Config of the next trial; what the inner searcher says if it has none now (None) or no more (FINISHED)."""
        if self._space is None:
            raise ValueError("STNSearch has no search space: pass param_space to tune.Tuner, or config to tune.run")
        number = len(self._trials)
        outside: Any = self._draw_outside(number) if self.inner is None else self.inner.suggest(trial_id)
        if outside is None or outside == Searcher.FINISHED:
            return outside
        if "hp" in outside:
            raise ValueError(f"{type(self.inner).__name__} searches 'hp' too, which STNSearch does: take it out there")
        start = self._propose(number) if number else self._space["start"]
        self._trials[trial_id] = _Trial(start)
        return {**outside, "hp": dict(start)} if start else outside

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._note(trial_id, result)
        if self.inner is not None:
            self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        # A result at which the scheduler said STOP comes here only.
        if result:
            self._note(trial_id, result)
        if trial := self._trials.get(trial_id):
            trial.ended = True
            trial.failed |= error
        if self.inner is not None:
            self.inner.on_trial_complete(trial_id, result=result, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Write the state as JSON. What the inner searcher saves, in its own format, becomes a part of it, signed with
        the user's key: that of most searchers is a pickle."""
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "seed": self._seed,
            "space": self._space,
            "trials": {trial_id: asdict(trial) for trial_id, trial in self._trials.items()},
            "inner": None,
        }
        if self.inner is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "inner"
                self.inner.save(str(path))
                state |= _sealed_inner(path.read_bytes())
        with whole_file(Path(checkpoint_path)) as path:
            path.write_text(json.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a saved state, in its search space, whether or not there is a `param_space` this time.

        Raises:
            ValueError: the file is damaged, or of a searcher with an inner one where this has none, or the reverse.
            NotSealed: the state of the inner searcher is not signed with the user's key, so it is not looked at.
        """
        try:
            state = parse_json(read_whole(Path(checkpoint_path)), _STATE)
            version, seed, space, inner = (state[key] for key in ("version", "seed", "space", "inner"))
            trials = {trial_id: _trial(fields) for trial_id, fields in state["trials"].items()}
            if space is not None:  # as `_take` does
                domains, _ = StartDomains(from_json(space["hp"])), from_json(space["outside"])
                domains.nearest(space["start"])
                for trial in trials.values():
                    for values in (trial.start, *((trial.best.values, trial.best.scales) if trial.best else ())):
                        domains.nearest(values)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, IndexError) as error:
            raise ValueError(f"{checkpoint_path} is no state of STNSearch ({type(error).__name__}: {error})") from None
        if version != STATE_VERSION:
            raise ValueError(f"{checkpoint_path} is of version {version}, and this STNSearch reads {STATE_VERSION}")
        if (inner is None) != (self.inner is None):
            raise ValueError(f"{checkpoint_path} was saved {'without' if inner is None else 'with'} an inner searcher")
        data = b"" if inner is None else _checked_inner(checkpoint_path, state)
        self._seed, self._trials = seed, trials
        if space is not None:
            self._take(space)
        if self.inner is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "inner"
                path.write_bytes(data)
                self.inner.restore(str(path))

    def _take(self, space: dict[str, Any]) -> None:
        self._space = space
        self._metric, self._mode = space["metric"], space["mode"]
        self._domains = StartDomains(from_json(space["hp"]))
        self._outside = from_json(space["outside"])

    def _note(self, trial_id: str, result: Mapping[str, Any]) -> None:
        trial, score = self._trials.get(trial_id), result.get(self.metric)
        if trial is None or score is None:
            return
        loss = float(score) if self.mode == "min" else -float(score)
        trial.failed = result.get("status") == "diverged" or not math.isfinite(loss)
        if not trial.failed and (trial.best is None or loss < trial.best.loss):
            values = {name: float(result.get(f"hp/{name}", start)) for name, start in trial.start.items()}
            scales = {name: float(result.get(f"scale/{name}", 0.0)) for name in trial.start}
            trial.best = Report(loss, values, scales)

    def _draw_outside(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng(derive_seed(self._seed, "outside hp", number))
        _, spec = next(generate_variants({"config": self._outside}, random_state=rng))
        drawn: dict[str, Any] = spec["config"]
        return drawn

    def _propose(self, number: int) -> dict[str, float]:
        rng = np.random.default_rng(derive_seed(self._seed, "hp", number))
        explores = rng.random() < self.explore
        good = [trial for trial in self._trials.values() if trial.best is not None and not trial.failed]
        ended = [trial for trial in good if trial.ended] or good
        reports = [trial.best for trial in ended if trial.best is not None]
        return self._domains.draw(rng) if explores or not reports else self._domains.draw_near(reports, rng)


def seal_inner(path: Path) -> bool:
    """Sign the state of the inner searcher in a saved state, for a user who says that it is to be trusted.

    Returns:
        Whether there is one: other files are left as they are.
    """
    try:
        state = json.loads(path.read_bytes())
        data = base64.b64decode(state["inner"], validate=True)
        state["version"], state["seed"], state["space"], state["trials"]
    except (ValueError, KeyError, TypeError):
        return False
    own_key()  # or it says why there is none
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({**state, **_sealed_inner(data)}))
    return True


def _sealed_inner(data: bytes) -> dict[str, Any]:
    try:
        seal = sign(_INNER, data, own_key())
    except NoKey as error:
        logger.warning("the state of the inner searcher is not sealed, so it cannot be restored: %s", error)
        seal = None
    return {"inner": base64.b64encode(data).decode(), "inner_seal": seal}


def _checked_inner(path: str, state: Mapping[str, Any]) -> bytes:
    """What the inner searcher has saved, if this user has: loading it may run what it says."""
    try:
        data = base64.b64decode(state["inner"], validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no state of STNSearch ({type(error).__name__}: {error})") from None
    if not is_signed(_INNER, data, state.get("inner_seal"), own_key()):
        raise NotSealed(
            f"{path}: what its inner searcher saved may be a pickle, which can run any code, and is not signed with "
            f"the key in {key_path()}; if you wrote it, `tune-stn trust {path}` says so; if not, begin anew"
        )
    return data


def _trial(fields: Mapping[str, Any]) -> _Trial:
    """A trial from what `asdict` made of it."""
    return _Trial(**{**fields, "best": fields["best"] and Report(**fields["best"])})


def _check_inner(inner: object) -> None:
    label = type(inner).__name__
    if isinstance(inner, (ConcurrencyLimiter, Repeater)):
        raise ValueError(f"{label} cannot be the inner searcher: put it around, {label}(STNSearch(...), ...)")
    if inner is not None and not isinstance(inner, Searcher):
        raise ValueError(
            f"the inner searcher is a {label}; accepted is a ray.tune.search.Searcher such as OptunaSearch(), or None "
            "for random draws"
        )


def _check_goal(metric: object, mode: object) -> None:
    if not (metric is None or isinstance(metric, str)) or mode not in (None, "min", "max"):
        raise ValueError(f"metric={metric!r}, mode={mode!r}: accepted are the name of one metric, and 'min' or 'max'")


def _bind(inner: Searcher, metric: str, mode: str, outside: dict[str, Any]) -> None:
    """Give the inner searcher its search space; one that has its own keeps it, if nothing is left to search."""
    label = type(inner).__name__
    taken = inner.set_search_properties(metric, mode, outside)
    if outside and not taken:
        raise ValueError(
            f"{label} has a search space of its own, but param_space has domains outside 'hp' too "
            f"({', '.join(outside)}): make it without a space, and it gets these"
        )
    if taken and not outside:
        raise ValueError(
            f"{label} has nothing to search, for param_space has no domain outside 'hp': add one "
            "('lr': tune.loguniform(3e-3, 0.3)), or use STNSearch() without it"
        )
