"""Update rules, the loop they share, its state and its cost."""

from typing import TYPE_CHECKING

from tune_stn.lazy import names_of

if TYPE_CHECKING:
    from tune_stn.training.checkpoint import CheckpointError, load_state, save_state
    from tune_stn.training.rules import RULES, get_rule
    from tune_stn.training.trainer import Trainer

__all__ = ["RULES", "CheckpointError", "Trainer", "get_rule", "load_state", "save_state"]

__getattr__ = names_of(
    __name__,
    {
        "CheckpointError": "tune_stn.training.checkpoint",
        "RULES": "tune_stn.training.rules",
        "Trainer": "tune_stn.training.trainer",
        "get_rule": "tune_stn.training.rules",
        "load_state": "tune_stn.training.checkpoint",
        "save_state": "tune_stn.training.checkpoint",
    },
)
