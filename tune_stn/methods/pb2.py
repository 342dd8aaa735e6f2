"""Population-based bandits (Parker-Holder et al. 2020, arXiv 2002.02518), Ray Tune's scheduler over our domains."""

from __future__ import annotations

import warnings
from typing import Any

import sklearn
from ray.tune.schedulers.pb2 import PB2 as RayPB2  # its documented home: Ray loads it apart, for it needs scikit-learn
from sklearn.exceptions import ConvergenceWarning

from tune_stn.methods.method import Context, Plan, tune_values
from tune_stn.methods.pbt import population_plan, population_settings
from tune_stn.space import SearchSpace
from tune_stn.space.domains import EDGE
from tune_stn.space.quantile import quantile, share_below
from tune_stn.tuning.trainable import COORDINATES


def plan(context: Context) -> Plan:
    return population_plan(context, PB2OverSpace(context.task.space, **population_settings(context)))


class PB2OverSpace(RayPB2):
    """PB2 that sees each hyperparameter on the scale of its domain.

    Ray's Gaussian process models values as they are, between two bounds: of [1e-6, 0.1] on a log scale it would explore
    nothing below 0.01 but a tenth. Here it gets the share of the domain's random draws that lie below the value, kept
    in a trial's config beside `hp`. The shares stay as PB2 chose them where the domain is discrete and `hp` is rounded:
    PB2 knows what a member reports after exploring by the exact numbers.

    Args:
        space: The space to be searched.
        settings: Keyword arguments of Ray's `PB2`.
    """

    def __init__(self, space: SearchSpace, **settings: Any) -> None:
        self.space = space
        # Numbered: PB2 takes a slash in a name for two levels.
        self._names = {str(number): name for number, name in enumerate(space)}
        self._settings: dict[str, Any] = {}
        bounds = {number: [EDGE, 1 - EDGE] for number in self._names}
        super().__init__(hyperparam_bounds={COORDINATES: bounds}, custom_explore_fn=self._with_values, **settings)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give a new trial its coordinates; one added again, after a failure, has them."""
        values = trial.config["hp"]
        if COORDINATES not in trial.config:
            trial.config[COORDINATES] = {
                number: share_below(self.space[name], values[name]) for number, name in self._names.items()
            }
        self._settings = {key: value for key, value in trial.config.items() if key not in ("hp", COORDINATES)}
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # What it finds is used whether or not its likelihood converged, and the checks of scikit-learn take a third of
        # its time. Nothing infinite comes here: a diverged trial has ended.
        with warnings.catch_warnings(), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", DeprecationWarning)  # an option of scipy's that Ray still gives
            return super().on_trial_result(tune_controller, trial, result)

    def _with_values(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config at the coordinates that PB2 chose; all else as trials have it, for PB2 hands it over flattened."""
        chosen = config[COORDINATES]
        values = {name: quantile(self.space[name], chosen[number]) for number, name in self._names.items()}
        return {**self._settings, COORDINATES: chosen, "hp": tune_values(self.space, values)}
