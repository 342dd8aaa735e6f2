"""What a training step reads and what an evaluation draws, by observation, before a run.

A hyperparameter that nothing reads cannot be tuned. A dropout that goes on in evaluation makes each validation loss,
and each decision by it, a matter of chance.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.nn.first_order import evaluating
from tune_stn.nn.penalties import OptimizerWeightDecay
from tune_stn.space.sample import Sample
from tune_stn.space.tunable import Tunable
from tune_stn.tasks.task import Task
from tune_stn.training.forward import Forward, eagerly
from tune_stn.training.objectives import training_loss
from tune_stn.training.seeds import own_draws

# Whether a hyperparameter has an effect is seen by so many examples, at raw coordinates so far below and above zero.
FEW, AWAY = 8, 3.0


class Noting(Mapping[str, Tensor]):
    """Values that note which of them were read.

    Attributes:
        read: The names of those.
    """

    def __init__(self, values: Mapping[str, Tensor], read: set[str] | None = None) -> None:
        self.values_ = values
        self.read = set() if read is None else read

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def check_read(task: Task, forward: Forward, batch: Batch, *, effects: bool = True) -> None:
    """Refuse a task of which a hyperparameter is read by nothing in a training step, or changes nothing in it.

    One step's loss is computed, and gradients of a few examples' loss; no weight, running statistics or random stream
    notices.

    Args:
        task: The task.
        forward: Its network.
        batch: Some training examples.
        effects: Whether it is looked at what hyperparameters change, which does not depend on the algorithm. Default
            True; with False, only at what is read.

    Raises:
        ValueError: A hyperparameter is not read; the message says what is bound to it. Or it is read, but no weight
            would train otherwise at another value: what reads it does not train. Or the model's code reads one
            as one number where each example has its own. Or the loss is not one number.
    """
    batch, model = batch.unread(), forward.model
    training, buffers = model.training, [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    with torch.no_grad(), own_draws(batch.device), eagerly(task.training.compile):
        # A response is trained with hyperparameters for each example, of which the model's code may want one number.
        responds = isinstance(model.hyper, Tunable) and model.conversion.responding
        sample = model.perturbed_sample(len(batch)) if responds else model.hyper.constant_sample()
        values = Noting(sample.values)
        loss = training_loss(forward, batch, replace(sample, values=values))
        unread = [name for name in task.space if name not in values.read]
        without_effect = _without_effect(forward, batch) if effects and not unread and loss.numel() == 1 else None
        for buffer, before in buffers:
            buffer.copy_(before)
    model.train(training)
    if loss.numel() != 1:
        raise ValueError(
            f"loss of task {task.name!r} gave a tensor of shape {tuple(loss.shape)} for a batch: it gives the mean "
            "over the batch, one number; losses of torch do so with reduction='mean'"
        )
    if unread:
        bound = _bound(task, unread[0])
        reason = f"it is bound to {bound}, which did not use it" if bound else "what it is bound to ignored it"
        raise ValueError(
            f"hyperparameter {unread[0]!r} of task {task.name!r} was read by nothing in a training step: {reason}. A "
            "dropout module that the forward pass never calls, one in evaluation mode, F.dropout in place of it, or "
            "the dropout of an LSTM of one layer tunes nothing"
        )
    if without_effect is not None:
        bound = _bound(task, without_effect)
        raise ValueError(
            f"hyperparameter {without_effect!r} of task {task.name!r} was read in a training step, but no weight would "
            f"train otherwise at another value{f'; it is bound to {bound}' if bound else ''}: what reads it is in a "
            "part of the network that is frozen, in evaluation mode or under torch.no_grad(). Let that part train, or "
            "leave the hyperparameter out of the space"
        )


def _bound(task: Task, name: str) -> str:
    """The paths that a hyperparameter is bound to, in words; empty where it is read otherwise."""
    bindings = {**task.dropout, **{f"{path} (weights)": rate for path, rate in task.weight_dropout.items()}}
    return ", ".join(repr(path) for path, rate in bindings.items() if rate == name)


def _without_effect(forward: Forward, batch: Batch) -> str | None:
    """A hyperparameter at two values of which, with the same draws, the gradient of each weight is the same; or None.

    It is looked for only in a network of which a part does not train, for in others there is none: a parameter has no
    gradient, or a module stays in evaluation mode. Twice, at the present values of the others and in the middle of
    their domains: a cutout of no holes has no size that matters. A decay by the optimizer is in no gradient.
    """
    few, model, space = batch.part(0, FEW), forward.model, forward.task.space
    weights = model.base_parameters()

    def gradients(values: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
        with torch.enable_grad(), own_draws(few.device):
            loss = training_loss(forward, few, Sample(values))
            return (
                torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else (None,) * len(weights)
            )

    present = model.hyper.constant_sample().values

    def at(raw: float, name: str) -> dict[str, Tensor]:
        return {name: space[name].transform(torch.full_like(present[name], raw))}

    middle = {**present, **{name: value for each in space for name, value in at(0.0, each).items()}}
    frozen = any(not parameter.requires_grad for parameter in model.network.parameters())
    trains = not frozen and all(module.training for module in model.network.modules())
    if trains and all(gradient is not None for gradient in gradients(present)):
        return None
    outside = {penalty.rate for penalty in forward.task.penalties if isinstance(penalty, OptimizerWeightDecay)}
    for name in space:
        if name not in outside and not any(
            _differ(gradients({**others, **at(-AWAY, name)}), gradients({**others, **at(AWAY, name)}))
            for others in (present, middle)
        ):
            return name
    return None


def _differ(some: tuple[Tensor | None, ...], others: tuple[Tensor | None, ...]) -> bool:
    return any(
        one is not other and (one is None or other is None or not torch.equal(one, other))
        for one, other in zip(some, others, strict=True)
    )


def warn_of_draws(task: Task, forward: Forward, batch: Batch) -> None:
    """Warn of a network that draws at random in evaluation, naming the innermost module that does.

    The network is evaluated on one batch; no weight, running statistics or random stream notices.

    Args:
        task: The task.
        forward: Its network.
        batch: Some training examples.
    """
    batch = batch.unread()
    network = forward.model.network
    states: list[list[Tensor]] = []
    drawing: list[str] = []

    def state() -> list[Tensor]:
        on_gpu = [torch.cuda.get_rng_state(batch.device)] if batch.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpu]

    def before(*_: Any) -> None:
        states.append(state())

    def after(module: nn.Module, *_: Any) -> None:
        if not all(map(torch.equal, states.pop(), state())):
            drawing.append(paths[id(module)])  # inner modules end before outer ones

    paths = {id(module): path for path, module in network.named_modules()}
    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(own_draws(batch.device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eagerly(task.training.compile))
        stack.enter_context(evaluating(forward.model))
        forward.outputs(batch, forward.model.hyper.constant_sample())
    if drawing:
        where = repr(drawing[0]) if drawing[0] else "its own forward pass"
        warnings.warn(
            f"the network of task {task.name!r} draws at random in evaluation, in {where}: two evaluations of it "
            "differ, so its val_loss and each decision by it are chance in part. F.dropout(x, p) goes on unless it is "
            "given training=self.training",
            stacklevel=2,
        )
