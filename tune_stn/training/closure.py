"""A batch of a loop of one's own: a function that does forward and loss; and its objectives, functions like those of
objectives.py.

The loop's closures say nothing of augmentations, penalties and metrics, so what is evaluated is what they do in
evaluation mode. Nor do they say how many examples they look at: the network draws a sample when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tune_stn.nn.first_order import evaluating
from tune_stn.nn.model import SelfTuningModel, examples
from tune_stn.nn.penalties import OptimizerWeightDecay
from tune_stn.nn.rows import take_rows
from tune_stn.space.sample import Draw, Sample


@dataclass(frozen=True, eq=False)
class Closure:
    """A batch as a loop of one's own has it. It has the methods of `Batch` that update rules use.

    Attributes:
        loss: A function that calls the network and returns the loss, of the tensors of the batch or of nothing.
        tensors: What it takes: tensors, or containers of tensors, with the examples along the first axis; or nothing,
            and then the batch has no parts.
    """

    loss: Callable[..., Tensor]
    tensors: tuple[Any, ...] = ()

    def __call__(self) -> Tensor:
        """The loss.

        Raises:
            TypeError: It is not a tensor of one number.
        """
        loss = self.loss(*self.tensors)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the closure gave {given}: it returns the loss of the network, a tensor of one number")
        return loss.squeeze()

    def part(self, start: int, stop: int) -> Closure:
        """Consecutive examples, sharing memory with these; all of them where the tensors are not known."""
        return replace(self, tensors=take_rows(self.tensors, slice(start, stop))) if self.tensors else self

    def parts(self, count: int) -> Iterator[tuple[Closure, float]]:
        """The batch in `count` parts of consecutive examples, each with its share of the batch; or as a whole."""
        if count == 1 or not self.tensors:
            yield self, 1.0
            return
        size = -(-len(self) // count)
        for start in range(0, len(self), size):
            part = self.part(start, start + size)
            yield part, len(part) / len(self)

    def unread(self) -> Closure:
        """Itself: what a recurrent network carries is the loop's own affair."""
        return self

    def __len__(self) -> int:
        """The number of examples; 1 where it is unknown, for the batch has one part."""
        return examples(self.tensors, {}) if self.tensors else 1

    @property
    def rows(self) -> slice:
        """All rows: a part draws its own sample."""
        return slice(None)


def training_loss(
    net: SelfTuningModel, closure: Closure, sample: Sample | Draw, *, decays: Sequence[OptimizerWeightDecay] = ()
) -> Tensor:
    """The training objective f: what the closure gives at a sample, in training mode.

    With the weight decays that the optimizer does itself, without their gradient.
    """
    loss = bare_loss(net, closure, sample)
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            "the loss of train_step has no gradient: the closure calls the network that self_tuning returned, outside "
            "of torch.no_grad() and without detaching its outputs"
        )
    for decay in decays:
        loss = loss + decay(net.network, net.hyper.constant_sample() if isinstance(sample, Draw) else sample, {}).mean()
    return loss


def validation_loss(net: SelfTuningModel, closure: Closure, sample: Sample | Draw) -> Tensor:
    """The validation objective F: what the closure gives at a sample, in evaluation mode."""
    with evaluating(net):
        return bare_loss(net, closure, sample)


def bare_loss(net: SelfTuningModel, closure: Closure, sample: Sample | Draw) -> Tensor:
    """What the closure gives at a sample, in the mode that the network is in.

    Raises:
        ValueError: The closure has not called the network: it may have called the model that the network is a copy of.
    """
    net.slot.called = False
    with net.using(sample):
        loss = closure()
    if not net.slot.called:
        raise ValueError("the closure did not call the self-tuning network: do forward and loss inside of it")
    return loss
