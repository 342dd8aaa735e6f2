"""The network of a run: its initial weights, its responses and their size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.nn.first_order import map_tensors
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.penalties import WeightDecay
from tune_stn.nn.response import ResponseSize
from tune_stn.nn.self_tuning import self_tuning
from tune_stn.tasks.arguments import check_network
from tune_stn.tasks.task import Task
from tune_stn.training.forward import arguments
from tune_stn.training.rules.rule import Rule
from tune_stn.training.seeds import derive_seed


def make_network(
    task: Task, rule: type[Rule], *, start: Mapping[str, float], seed: int, batch: Batch | None = None
) -> SelfTuningModel:
    """The task's network as a rule wants it, on the CPU.

    Its base weights are those of the seed, whatever the rule is; responses have a random stream of their own.

    Args:
        task: The task.
        rule: The update rule.
        start: The start values of the hyperparameters, or the constants.
        seed: The seed of the run.
        batch: Some examples, by which layers are found whose first axis is not the batch; or None.

    Raises:
        ValueError: The hyperparameters are to be tuned, but no layer responds to them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        network = check_network(task.name, task.model())
    response, why = response_size(task, rule)
    model = self_tuning(
        network,
        task.space,
        start=start,
        dropout=task.dropout,
        weight_dropout=task.weight_dropout,
        response=response,
        norms=task.norms,
        why=why,
        scale=task.training.scale,
        tuned=rule.tunes,
        centred=rule.centred,
        response_origin=task.training.response_origin,
        shrink_gates=task.training.shrink_gates,
        seed=derive_seed(seed, "response"),
        inputs=None
        if batch is None or response is None or batch.device.type == "meta"
        else inputs_of(task, network, batch),
    )
    if rule.tunes and rule.response is not None and not model.response_parameters():
        raise ValueError(
            f"no layer of the model of task {task.name!r} has a response, so its hyperparameters have no gradient; "
            f"left plain: {model.conversion.left_plain}"
        )
    return model


def inputs_of(task: Task, network: nn.Module, batch: Batch) -> tuple[Any, ...] | dict[str, Any] | None:
    """What the task's network is called with, on the CPU, by position or by name; None without numbers (meta)."""
    if batch.device.type == "meta":
        return None
    args, kwargs = arguments(network, map_tensors(Tensor.cpu, batch.inputs))
    if task.recurrent:
        args = (*args, None)
    return kwargs or args


def response_size(task: Task, rule: type[Rule]) -> tuple[ResponseSize | Mapping[str, ResponseSize | None] | None, str]:
    """Size of the responses for a run of `task` by `rule`, and the reason where it was chosen here.

    The evidence for the choice is in experiments/response_size.py.
    """
    chosen = task.training.response
    if rule.response is None:
        return None, ""
    if chosen != "auto":
        return chosen, ""
    if rule.response == "gate" and any(isinstance(penalty, WeightDecay) for penalty in task.penalties):
        return "full", "under a strong weight decay, weights and gates shrink each other to nothing"
    return rule.response, rule.why
