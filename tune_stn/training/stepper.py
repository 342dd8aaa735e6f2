"""Backward passes and optimizer steps of named groups of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tune_stn.data.batches import Batch
from tune_stn.nn.cuda_graph import GraphedFunction
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.penalties import OptimizerWeightDecay
from tune_stn.space.tunable import Tunable
from tune_stn.tasks.settings import Training
from tune_stn.training.optimizer_decay import follow, grouped
from tune_stn.training.processes import Processes

HYPER = "hyper"
B = TypeVar("B")


class Stepper:
    """The optimizers of a run, by the name of the group of parameters that each of them steps.

    A backward pass asks for the gradients of the groups it names and of nothing else: so the training loss never gives
    one to a hyperparameter, the validation loss never one to a weight, and nothing leaks from one step into the next.

    Args:
        optimizers: An optimizer for each group: "base", and where they exist "response" and "hyper".
        lr_schedules: The learning-rate schedules of some or all of them.
        groups: The parameters of each group, where optimizers do not tell: several groups may share one optimizer, and
            it may have parameters that are of none. By default, all parameters of its optimizer.
        processes: Those that train one network together, over which gradients of hyperparameters are averaged; those of
            the weights are the affair of the network's wrapper.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        lr_schedules: Mapping[str, LRScheduler] | None = None,
        groups: Mapping[str, Sequence[nn.Parameter]] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.optimizers = dict(optimizers)
        self.groups = groups
        self.lr_schedules = dict(lr_schedules or {})
        self.processes = processes
        self._recorded: dict[Any, GraphedFunction] | None = None

    def parameters(self, *names: str) -> list[nn.Parameter]:
        """The parameters of the groups of these names; a group that the run has not is empty."""
        if self.groups is not None:
            return [p for name in names for p in self.groups.get(name, ())]
        optimizers = [self.optimizers[name] for name in names if name in self.optimizers]
        return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]

    def backward(
        self,
        losses: Callable[[B], Iterable[Tensor]],
        batch: B,
        *,
        to: tuple[str, ...],
        clip_norm: float | None = None,
    ) -> Tensor:
        """Set the gradients of some groups to those of the sum of the losses, one loss after the other.

        Args:
            losses: A function that gives, one by one, the losses of the parts of a batch; so the graph of one part is
                gone before that of the next is made. What it does but for the batch is the same in every call.
            batch: The batch; the function's losses depend on it alone, on parameters, and on random draws.
            to: The names of the groups.
            clip_norm: The largest norm of the gradient of all these groups together, or None.

        Returns:
            The sum of the losses, detached.
        """
        parameters = self.parameters(*to)
        if self._recorded is None or not isinstance(batch, Batch) or not _is_recordable(batch):
            total, *_ = _gradients(losses, batch, parameters)
        else:
            if (losses, to) not in self._recorded:
                like = batch

                def of_tensors(inputs: Tensor, targets: Tensor) -> tuple[Tensor | None, ...]:
                    return _gradients(losses, replace(like, inputs=inputs, targets=targets), parameters)

                self._recorded[losses, to] = GraphedFunction(of_tensors, copies=False)
            total, *gradients = self._recorded[losses, to](batch.inputs, batch.targets)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        if HYPER in to and self.processes is not None:
            self.processes.average([p.grad for p in parameters if p.grad is not None])
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        assert total is not None
        return total

    def step(self, *names: str) -> None:
        """Step the optimizers of some groups down the gradients that `backward` has set."""
        self.drop_others(*names)
        for optimizer in dict.fromkeys(self.optimizers[name] for name in names):
            optimizer.step()

    def drop_others(self, *names: str) -> None:
        """Drop the gradients of parameters of these groups' optimizers that are not in the groups."""
        if self.groups is None:
            return
        optimizers = dict.fromkeys(self.optimizers[name] for name in names)
        stepped = {id(p) for p in self.parameters(*names)}
        for p in (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]):
            if id(p) not in stepped:
                p.grad = None  # so an optimizer leaves it alone

    def record(self) -> None:
        """From now on replay backward passes, losses included, as CUDA graphs, where no state is carried."""
        self._recorded = {}

    def step_lr_schedules(self, val_loss: float) -> None:
        """Go on to the learning rates of the next epoch."""
        for schedule in self.lr_schedules.values():
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(val_loss)
            else:
                schedule.step()

    @contextmanager
    def slowed(self, factor: float) -> Iterator[None]:
        """Inside the block, the weights learn at the rates of their schedule times `factor`.

        Outside, schedules find the rates as they left them: many go on from those, each in its own way.
        """
        groups = [g for name, o in self.optimizers.items() if name != HYPER for g in o.param_groups]
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def forget(self) -> None:
        """Forget the momentum, and whatever else the optimizers have gathered."""
        for optimizer in self.optimizers.values():
            optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "lr_schedules": {name: schedule.state_dict() for name, schedule in self.lr_schedules.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            # Torch keeps the tensors it is given: without a copy, two runs would share their momentum.
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))
        for name, schedule in self.lr_schedules.items():
            schedule.load_state_dict(state["lr_schedules"][name])


def _is_recordable(batch: Batch) -> bool:
    """Whether a batch is of two tensors and carries no state: a graph is recorded with the very tensors."""
    return batch.carry is None and isinstance(batch.inputs, Tensor) and isinstance(batch.targets, Tensor)


def make_stepper(
    model: SelfTuningModel, training: Training, *, hyper_steps: int, decays: Sequence[OptimizerWeightDecay] = ()
) -> Stepper:
    """The optimizers of a run of so many hyper-steps: base and response parameters have one of the same kind each.

    Args:
        model: The network.
        training: The settings.
        hyper_steps: Hyper-steps of the whole run.
        decays: Weight decays of the optimizer that follow a hyperparameter.
    """
    base = model.base_parameters()
    groups: dict[str, Any] = {
        "base": grouped(base, decays, model.network) if decays else base,
        "response": model.response_parameters(),
    }
    optimizers = {name: training.make_optimizer(group) for name, group in groups.items() if group or name == "base"}
    follow(optimizers["base"], decays, model)
    schedules = {name: training.make_lr_schedule(optimizer) for name, optimizer in optimizers.items()}
    if isinstance(model.hyper, Tunable):
        hyper = [model.hyper.raw, *([model.hyper.rho] if training.tune_scales else [])]
        optimizers[HYPER] = training.make_hyper_optimizer(hyper, hyper_steps=hyper_steps)
    return Stepper(optimizers, {name: schedule for name, schedule in schedules.items() if schedule is not None})


def _gradients(
    losses: Callable[[B], Iterable[Tensor]], batch: B, parameters: list[nn.Parameter]
) -> tuple[Tensor | None, ...]:
    """The sum of the losses, detached, and its gradients, which are the parameters' own as well."""
    total = torch.zeros((), device=parameters[0].device)
    for parameter in parameters:
        parameter.grad = None
    for loss in losses(batch):
        # Not `autograd.grad`: it gives two summands one and the same tensor, which clipping would scale twice.
        torch.autograd.backward(loss, inputs=parameters)
        total = total + loss.detach()
    return total, *(parameter.grad for parameter in parameters)
