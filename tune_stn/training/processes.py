"""Several processes that train one network together, each on its part of every batch, by DistributedDataParallel.

That averages the gradients of the weights. Here is what else all of them must agree on: the losses by which a rule
decides, and the gradients of the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Processes:
    """Those of a wrapped network.

    Args:
        wrapper: The network in its wrapper, the same in all of them.
    """

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.wrapper = wrapper

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes in the place of each tensor; the same to the last bit in all of them."""
        for tensor in tensors:
            distributed.all_reduce(tensor, group=self.wrapper.process_group)
            tensor.div_(distributed.get_world_size(self.wrapper.process_group))

    def apart(self) -> AbstractContextManager[None]:
        """Inside the block, the wrapper averages no gradients: of a hyper-step, which has none of the weights."""
        return self.wrapper.no_sync()

    def agreed(self, objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """An objective whose value, where no gradient is asked for, is the mean over the processes."""

        def mean(*args: Any) -> Tensor:
            loss = objective(*args)
            if not torch.is_grad_enabled():
                loss = loss.detach().clone()
                self.average([loss])
            return loss

        return mean


def unwrapped(network: nn.Module) -> tuple[nn.Module, Processes | None]:
    """A network without the wrapper that it may be in, and the processes of that."""
    if isinstance(network, DistributedDataParallel):
        return network.module, Processes(network)
    return network, None
