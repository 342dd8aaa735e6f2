"""Everything that touches Ray."""

from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.recorder import BudgetStopper, Recorder
from tune_stn.tuning.trainable import STNTrainable

__all__ = ["BudgetStopper", "Cluster", "Recorder", "STNTrainable"]
