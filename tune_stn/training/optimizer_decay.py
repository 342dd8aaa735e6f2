"""Weight decay that the optimizer does itself, AdamW's say, at the present value of a hyperparameter.

Such a decay is no part of the loss, so the response of STN and Delta-STN learns nothing about it. The rules without a
response need no more than its dose, which is that of the penalty of the same strength.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.penalties import OptimizerWeightDecay
from tune_stn.space.search_space import SearchSpace


def check_held(decays: Iterable[object], space: SearchSpace, *, algorithm: str) -> None:
    """Refuse that an algorithm with a response tunes the decay of an optimizer.

    Args:
        decays: The penalties of a run; those that are no `OptimizerWeightDecay` are left alone.
        space: The hyperparameters.
        algorithm: The name of the algorithm, for the message.

    Raises:
        ValueError: It would; the hyperparameter is not held.
    """
    for decay in decays:
        if isinstance(decay, OptimizerWeightDecay) and decay.rate in space:
            raise ValueError(
                f"{algorithm!r} cannot tune {decay.rate!r}, the optimizer's own weight decay (AdamW's weight_decay, "
                "say): it is not in the loss, from which the response learns. Take the penalty "
                f"WeightDecay({decay.rate!r}) and weight_decay=0 in the optimizer, or algorithm='auto'"
            )


def grouped(
    parameters: Sequence[nn.Parameter], decays: Sequence[OptimizerWeightDecay], network: nn.Module
) -> list[dict[str, Any]]:
    """The parameters in groups for an optimizer: those of each decay, and the others, in the order given.

    Raises:
        ValueError: A decay matches no weight that trains, or two of them match the same.
    """
    of: dict[int, OptimizerWeightDecay] = {}
    for decay in decays:
        matched = {id(weight) for weight in decay.weights(network)}
        if matched.isdisjoint(map(id, parameters)):
            raise ValueError(f"{decay} matches no weight that trains")
        if both := [of[key] for key in matched if key in of]:
            raise ValueError(f"{both[0]} and {decay} match the same weight: an optimizer has one decay for each")
        of |= dict.fromkeys(matched, decay)
    groups = [[p for p in parameters if of.get(id(p)) is decay] for decay in (*decays, None)]
    return [{"params": group} for group in groups if group]


def follow(optimizer: torch.optim.Optimizer, decays: Sequence[OptimizerWeightDecay], model: SelfTuningModel) -> None:
    """From now on have an optimizer decay weights at the present value of hyperparameters, step by step.

    Args:
        optimizer: One with a `weight_decay`. Each of its groups is decayed as a whole or not at all.
        decays: What is decayed.
        model: The self-tuning network.

    Raises:
        ValueError: The optimizer has no weight decay; no group has a decay's weights; or one has others beside them.
    """
    if not decays:
        return
    if any("weight_decay" not in group for group in optimizer.param_groups):
        raise ValueError(
            f"{decays[0]}: the optimizer {type(optimizer).__name__} has no weight_decay; AdamW has one. The penalty "
            f"WeightDecay({decays[0].rate!r}) needs none"
        )
    rates: dict[int, str] = {}  # by the number of the group: a loaded state makes groups anew
    for decay in decays:
        weights = {id(weight) for weight in decay.weights(model.network)}
        for number, group in enumerate(optimizer.param_groups):
            inside = {id(p) in weights for p in group["params"]}
            if inside == {True, False}:
                raise ValueError(
                    f"{decay} is for some parameters of a group of the optimizer and not for others: give the "
                    "optimizer a group of those weights (of two or more axes; no biases, no norms), and one of the rest"
                )
            if inside == {True}:
                rates[number] = decay.rate
        if decay.rate not in rates.values():
            raise ValueError(f"{decay} matches no weight that the optimizer holds")
    seen: list[Any] = [None, {}]  # the state of the hyperparameters, and the values at it: reading them waits for a GPU

    def set_decays(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        state = [tensor._version for tensor in model.hyper.state_dict(keep_vars=True).values()]
        if state != seen[0]:
            sample = model.hyper.constant_sample()
            seen[:] = state, {rate: float(sample[rate]) for rate in rates.values()}
        for number, rate in rates.items():
            optimizer.param_groups[number]["weight_decay"] = seen[1][rate]

    optimizer.register_step_pre_hook(set_decays)
