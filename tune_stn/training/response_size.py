"""The automatic choice of the response size, and why; the evidence is in experiments/response_size.py."""

from __future__ import annotations

from collections.abc import Mapping

from tune_stn.nn.penalties import WeightDecay
from tune_stn.nn.response import ResponseSize
from tune_stn.tasks.task import Task
from tune_stn.training.rules.rule import Rule


def response_size(task: Task, rule: Rule) -> tuple[ResponseSize | Mapping[str, ResponseSize | None] | None, str]:
    """Size of the responses for a run of `task` by `rule`, and the reason where it was chosen here."""
    chosen = task.training.response
    if rule.response is None:
        return None, ""
    if chosen != "auto":
        return chosen, ""
    if rule.response == "gate" and any(isinstance(penalty, WeightDecay) for penalty in task.penalties):
        return "full", "under a strong weight decay, weights and gates shrink each other to nothing"
    return rule.response, rule.why
