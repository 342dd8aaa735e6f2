"""Which hyperparameters mattered, and when: from what a study has recorded, without a training step more.

The schedule holds the raw coordinate and the scale of every hyperparameter at every hyper-step. It does not hold the
gradient of the validation loss. With that gradient, `-gradient * step` summed over hyper-steps would be the gain that
each hyperparameter brought, to first order; it would take one more number for each hyperparameter and hyper-step.
Without it, the two measures below say where a rule went and how steep it found the loss to be, not what the way was
worth.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tune_stn.space.domains import Domain, Integer, LogUniform, Uniform
from tune_stn.study.domains import is_log, looks_log, place_of_raw, read_domains
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.training.tables import RUN_COLUMNS, hp_names

if TYPE_CHECKING:
    from tune_stn.study.results import Results

PARTS = 4  # of a trial's training steps
WHOLE = 0
SAMPLED = "random"  # the method whose trials are independent draws from the whole space
LEAST_TRIALS, MOST_TRIALS = 10, 200  # of Optuna's evaluators: below it, all is chance; above it, they take long
COLUMNS = ["task", "method", "measure", "part", "hp", "importance", "low", "high", "n"]
ONE_STEP_FOR_ALL = ("auto", "progress-ratio")  # methods whose steps do not follow a gradient of each hyperparameter


def importance(results: Results) -> pd.DataFrame:
    """Shares of importance of the hyperparameters of a study, by up to four measures.

    Two measures come from the schedule of the best trial of each run, where that trial tuned itself:

    * `movement`: the net change of a hyperparameter's place in its domain (`sigmoid(raw)`), as a share of the net
      changes of all. It says which hyperparameters the rule changed, and in which part of training. It does not say
      what the changes were worth: one that starts at its optimum stays there, however much it matters, and one that the
      loss ignores may drift. Of `auto` and `progress-ratio` it says less still: they move all hyperparameters together,
      `auto` in inverse proportion to what each adds to the training loss, so a large share is that of a mild one.
    * `sharpness`: `1 / scale²` as a share of the sum over all. Where the scales are tuned (`stn`, `delta-stn`,
      `stn-population`), a scale settles where the entropy bonus balances the curvature of the validation loss along the
      raw coordinate, at `scale² = entropy weight / curvature`. So once scales have settled, this is the share of the
      curvature: which hyperparameters must be right. Before, it lags behind. Without tuned scales it is left out.

    Two come from the trials of `random`, 10 to 200 over all seeds with a finite loss: `fanova` and `mdi` are Optuna's
    evaluators of these names on a study rebuilt from the hyperparameters and the best validation loss of each trial.
    They say what the loss of a whole run with constant values varies with, over the whole space. They are there where
    Optuna is installed; of few trials they are mostly noise.

    Args:
        results: A study of one task.

    Returns:
        A row for each method, measure, part and hyperparameter, with the columns `task, method, measure`; `part`, 0 for
        the whole trial and 1 to 4 for the quarters of its training steps (the measures of Optuna know the whole only);
        `hp`; `importance`, the mean share, from 0 to 1; `low` and `high`, the smallest and largest share of a run, NaN
        for Optuna's; `n`, the number of runs, or of trials for Optuna's. The shares of a method, measure and part sum
        to 1; where nothing moved there is no row.
    """
    domains = read_domains(results.study)
    rows = [*_of_schedules(results, domains), *_of_random_trials(results, domains)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_schedules(results: Results, domains: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    best = last_of_each_run(results.incumbent)[[*RUN_COLUMNS, "trial_id"]]
    rows = results.schedule.merge(best, on=[*RUN_COLUMNS, "trial_id"])
    last_steps = results.reports.groupby([*RUN_COLUMNS, "trial_id"])["step"].max()
    shares = []
    for key, trial in rows.groupby([*RUN_COLUMNS, "trial_id"], sort=False):
        if not (trial["source"] == "stn").any() or trial["raw"].isna().any():
            continue
        raw, scale = (
            trial.pivot_table(index="step", columns="hp", values=name, aggfunc="last", sort=False).sort_index()
            for name in ("raw", "scale")
        )
        if raw.isna().any(axis=None):  # a trial that copied one of another space
            continue
        last = max(float(raw.index[-1]), float(last_steps.get(key, 0)))
        for measure, part, values in _of_trial(raw, scale, domains, last):
            if values.sum() > 0:
                found = {"task": key[0], "method": key[1], "measure": measure, "part": part}
                shares += [
                    {**found, "hp": hp, "share": one} for hp, one in zip(raw, values / values.sum(), strict=True)
                ]
    if shares:
        by = ["task", "method", "measure", "part", "hp"]
        groups = pd.DataFrame(shares).groupby(by, sort=False)["share"]
        frame = groups.agg(importance="mean", low="min", high="max", n="count").reset_index()
        yield from ({str(name): cell for name, cell in row.items()} for row in frame.to_dict("records"))


def _of_trial(
    raw: pd.DataFrame, scale: pd.DataFrame, domains: Mapping[str, Domain], last: float
) -> Iterator[tuple[str, int, NDArray[np.float64]]]:
    """Measure, part, and one number at least 0 for each hyperparameter, of shape `(n,)`.

    Args:
        raw: The raw coordinates, a row for each step at which they changed, a column for each hyperparameter.
        scale: The scales, likewise.
        domains: The domains of the hyperparameters, as far as they are known.
        last: The last training step of the trial.
    """
    bounds = np.linspace(0, last, PARTS + 1)
    at = np.searchsorted(raw.index.to_numpy(dtype=np.float64), bounds, side="right") - 1
    at = at.clip(min=0)
    places = np.column_stack([place_of_raw(domains.get(str(name)), raw[name]) for name in raw])[at]
    parts = {WHOLE: (0, PARTS)} | {part: (part - 1, part) for part in range(1, PARTS + 1)}
    tuned_scales = bool((scale.max() > scale.min()).any())
    for part, (begin, end) in parts.items():
        yield "movement", part, np.abs(places[end] - places[begin])
        if tuned_scales:
            yield "sharpness", part, scale.to_numpy(dtype=np.float64)[at[end]] ** -2.0


def _of_random_trials(results: Results, domains: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    names = [name for name in hp_names(results.reports.columns) if results.reports[f"hp/{name}"].dtype.kind in "fi"]
    reports = results.reports[results.reports["method"] == SAMPLED]
    reports = reports[np.isfinite(reports["val_loss"])]
    columns = [f"hp/{name}" for name in names]
    trials = reports.groupby([*RUN_COLUMNS, "trial_id"])[["val_loss", *columns]].min().dropna()
    if len(names) < 2 or len(trials) < LEAST_TRIALS or find_spec("optuna") is None:
        return
    import optuna  # a second of imports

    trials = trials.iloc[np.unique(np.linspace(0, len(trials) - 1, MOST_TRIALS).astype(int))]
    distributions = {name: _distribution(trials[f"hp/{name}"], domains.get(name)) for name in names}
    rebuilt = [
        optuna.trial.create_trial(
            params={name: _member(row[f"hp/{name}"], distributions[name]) for name in names},
            distributions=distributions,
            value=float(row["val_loss"]),
        )
        for _, row in trials.iterrows()
    ]
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(level)
    study.add_trials(rebuilt)
    evaluators = {
        "fanova": optuna.importance.FanovaImportanceEvaluator(seed=0),
        "mdi": optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0),
    }
    for measure, evaluator in evaluators.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all losses the same: nothing to explain
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=True)
        for name in names:
            row = {"task": results.study["task"], "method": SAMPLED, "measure": measure, "part": WHOLE, "hp": name}
            yield row | {"importance": found.get(name, 0.0), "low": np.nan, "high": np.nan, "n": len(trials)}


def _distribution(values: pd.Series, domain: Domain | None) -> Any:
    """The domain as Optuna has it; one that is unknown, or without ends, is as wide as the values."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=is_log(domain), step=1 if is_log(domain) else domain.step)
    if isinstance(domain, Uniform | LogUniform):
        return FloatDistribution(domain.low, domain.high, log=is_log(domain))
    return FloatDistribution(float(values.min()), float(values.max()), log=looks_log(domain, values.to_numpy()))


def _member(value: float, distribution: Any) -> float:
    """A value, which may be off by the rounding of float32, within its distribution."""
    inside = min(max(value, distribution.low), distribution.high)
    return int(inside) if isinstance(distribution.low, int) else float(inside)
