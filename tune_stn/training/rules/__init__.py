"""Update rules, one file each."""

from collections.abc import Mapping

from tune_stn.training.rules.auto import Auto
from tune_stn.training.rules.delta_stn import DeltaSTN
from tune_stn.training.rules.fixed import Fixed
from tune_stn.training.rules.progress_ratio import ProgressRatio
from tune_stn.training.rules.rule import Rule, Tools
from tune_stn.training.rules.stn import STN

RULES: Mapping[str, type[Rule]] = {rule.name: rule for rule in (Auto, STN, DeltaSTN, ProgressRatio, Fixed)}

__all__ = ["RULES", "Rule", "Tools", "get_rule"]


def get_rule(name: str) -> type[Rule]:
    """The update rule of that name. Raises ValueError naming the accepted ones."""
    if name not in RULES:
        raise ValueError(f"unknown algorithm {name!r}; accepted are {', '.join(RULES)}")
    return RULES[name]
