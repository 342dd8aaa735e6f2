"""Update rules, one file each."""

from collections.abc import Mapping

from tune_stn.training.rules.delta_stn import DeltaSTN
from tune_stn.training.rules.fixed import Fixed
from tune_stn.training.rules.rule import Rule
from tune_stn.training.rules.stn import STN

_RULES: tuple[Rule, ...] = (Fixed(), STN(), DeltaSTN())
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _RULES}


def get_rule(name: str) -> Rule:
    """The update rule of that name. Raises ValueError naming the accepted ones."""
    if name not in RULES:
        raise ValueError(f"unknown algorithm {name!r}; accepted are {', '.join(RULES)}")
    return RULES[name]
