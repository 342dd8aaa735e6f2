"""Cost of training in plain-epoch equivalents, counted in floating-point operations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from tune_stn.data.batches import Batch
from tune_stn.data.splits import Examples
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.plain import copied
from tune_stn.tasks.task import Task
from tune_stn.training.flops import FlopCounter
from tune_stn.training.forward import call, eagerly
from tune_stn.training.seeds import own_draws

logger = logging.getLogger(__name__)


class Meter(Protocol):
    """What an update rule charges."""

    def step(self, kind: str) -> AbstractContextManager[None]:
        """Charge one step of a kind, "train", "response" or "hyper", for the work inside the block."""
        ...


class NoMeter:
    """Charges nothing: for a loop of one's own."""

    def step(self, kind: str) -> AbstractContextManager[None]:
        return nullcontext()


class CostMeter:
    """Counts the operations of each kind of step once, by torch's counter, and adds them up.

    Batches of a kind have a fixed shape, so one count holds for all its steps; the counter itself is too slow to run
    always. It counts products and convolutions, forward and backward, and ignores element-wise work.

    Args:
        epoch_flops: Number of operations of one training epoch of the plain network.
        compiled: Whether steps run compiled code, into which torch's counter cannot look.
    """

    def __init__(self, epoch_flops: int, *, compiled: bool = False) -> None:
        if epoch_flops <= 0:
            raise ValueError("the model has no product or convolution that torch's counter knows: cost is undefined")
        self.epoch_flops = epoch_flops
        self.compiled = compiled
        self.spent_flops = 0
        self._per_step: dict[str, int] = {}

    @property
    def cost(self) -> float:
        """What was spent so far, in plain-epoch equivalents."""
        return self.spent_flops / self.epoch_flops

    def state_dict(self) -> dict[str, Any]:
        """What was spent, and the count of each kind.

        A resumed run must not count again: under the counter torch takes some steps apart (batch normalisation, say),
        and their last bits change.
        """
        return {"spent_flops": self.spent_flops, "per_step": dict(self._per_step)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spent_flops, self._per_step = state["spent_flops"], dict(state["per_step"])

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        """Charge one step of a kind for the work inside the block."""
        if kind in self._per_step:
            yield
        else:
            with eagerly(self.compiled), FlopCounter() as counter:
                yield
            self._per_step[kind] = counter.get_total_flops()
        self.spent_flops += self._per_step[kind]


def plain_step_flops(task: Task, model: SelfTuningModel, batch: Batch) -> int:
    """Operations of one training step (forward and backward) of the plain network on one batch.

    Works on a copy: neither weights nor running statistics of `model` change, nor do random states.
    """
    plain = copied(model).train()
    parameters: list[nn.Parameter] = plain.base_parameters()
    with (
        own_draws(batch.device),
        FlopCounter() as counter,
        plain.using(plain.hyper.constant_sample()),
    ):
        outputs, _ = call(task, plain, batch)
        loss = task.loss(outputs, batch.targets)
        torch.autograd.grad(loss, parameters, allow_unused=True)
    if counter.unknown:
        logger.warning(
            "task %r: the cost leaves out %s, for which torch's counter has no formula; give it one by "
            "torch.utils.flop_counter.register_flop_formula",
            task.name,
            ", ".join(sorted(counter.unknown)),
        )
    return int(counter.get_total_flops())


def make_meter(task: Task, model: SelfTuningModel, train: Examples) -> CostMeter:
    """A meter in whose unit an epoch of the plain network over `train` costs 1."""
    size = task.training.batch_size
    batch = next(train.batches(size, torch.Generator()))
    flops = plain_step_flops(task, model, batch) * train.steps(size)
    return CostMeter(flops, compiled=task.training.compile)
