"""Cost of training in plain-epoch equivalents, counted in floating-point operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tune_stn.data.splits import Split
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.tasks.task import Task


class CostMeter:
    """Counts the operations of each kind of step once, by torch's counter, and adds them up.

    Batches of a kind have a fixed shape, so one count holds for all its steps; the counter itself is too slow to run
    always. It counts products and convolutions, forward and backward, and ignores element-wise work.

    Args:
        epoch_flops: operations of one training epoch of the plain network.
    """

    def __init__(self, epoch_flops: int) -> None:
        if epoch_flops <= 0:
            raise ValueError("the model has no product or convolution that torch's counter knows: cost is undefined")
        self.epoch_flops = epoch_flops
        self.spent_flops = 0
        self._per_step: dict[str, int] = {}

    @property
    def cost(self) -> float:
        """What was spent so far, in plain-epoch equivalents."""
        return self.spent_flops / self.epoch_flops

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        """Charge one step of a kind for the work inside the block."""
        if kind in self._per_step:
            yield
        else:
            with FlopCounterMode(display=False) as counter:
                yield
            self._per_step[kind] = counter.get_total_flops()
        self.spent_flops += self._per_step[kind]


def plain_step_flops(task: Task, model: SelfTuningModel, batch: Split) -> int:
    """Operations of one training step (forward and backward) of the plain network on one batch.

    Works on a copy: neither weights nor running statistics of `model` change.
    """
    plain = copy.deepcopy(model).train()
    parameters: list[nn.Parameter] = plain.base_parameters()
    with FlopCounterMode(display=False) as counter, plain.using(plain.hyper.constant_sample()):
        loss = task.loss(plain(batch.inputs), batch.targets)
        torch.autograd.grad(loss, parameters, allow_unused=True)
    return int(counter.get_total_flops())
