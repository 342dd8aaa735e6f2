"""Search space, raw coordinates and the tunable state."""

from tune_stn.space.domains import Domain, Integer, LogInteger, LogUniform, Normal, Uniform
from tune_stn.space.sample import Sample
from tune_stn.space.search_space import SearchSpace
from tune_stn.space.tunable import Constants, Tunable

__all__ = [
    "Constants",
    "Domain",
    "Integer",
    "LogInteger",
    "LogUniform",
    "Normal",
    "Sample",
    "SearchSpace",
    "Tunable",
    "Uniform",
]
