"""Update rules, the loop they share, its state and its cost."""

from tune_stn.training.checkpoint import CheckpointError, load_state, save_state
from tune_stn.training.rules import RULES, get_rule
from tune_stn.training.trainer import Trainer

__all__ = ["RULES", "CheckpointError", "Trainer", "get_rule", "load_state", "save_state"]
