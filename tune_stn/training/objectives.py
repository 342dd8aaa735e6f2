"""What a training step descends and what a hyper-step descends: plain functions of a network, a batch and a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from tune_stn.data.batches import Batch
from tune_stn.space.sample import Sample
from tune_stn.tasks.task import Task
from tune_stn.training.forward import Forward

Objective = Callable[[Any, Any], Tensor]
"""An objective of one network, a function of a batch and a sample: those below, or those of closure.py, their first
argument given."""


def training_loss(forward: Forward, batch: Batch, sample: Sample) -> Tensor:
    """The training objective f: mean loss of the augmented batch plus the penalties, averaged over the sample's rows.

    Augmentations, network and penalties read the same sample, whose values are detached: the training objective has no
    gradient with respect to the hyperparameters.

    Args:
        forward: The network.
        batch: The batch as it was drawn.
        sample: The hyperparameters.
    """
    task = forward.task
    batch = augmented(task, batch, sample)
    outputs, activations = forward.observed(batch, sample)
    loss = task.loss(outputs, batch.targets)
    for penalty in task.penalties:
        loss = loss + penalty(forward.model.network, sample, activations).mean()
    return loss


def validation_loss(forward: Forward, batch: Batch, sample: Sample) -> Tensor:
    """The validation objective F: mean loss in eval mode, without dropout, augmentation and penalties.

    So the sample reaches it through the response of the weights alone.

    Args:
        forward: The network; it is in training mode before and after.
        batch: The batch as it was drawn.
        sample: The hyperparameters.
    """
    forward.model.eval()
    loss = bare_loss(forward, batch, sample)
    forward.model.train()
    return loss


def bare_loss(forward: Forward, batch: Batch, sample: Sample) -> Tensor:
    """The mean loss without augmentation and penalties, in the mode that the network is in.

    Args:
        forward: The network.
        batch: The batch as it was drawn.
        sample: The hyperparameters.
    """
    return forward.task.loss(forward.outputs(batch, sample), batch.targets)


def augmented(task: Task, batch: Batch, sample: Sample) -> Batch:
    """A training batch after the task's augmentations at a sample."""
    inputs, targets = batch.inputs, batch.targets
    for augmentation in task.augmentations:
        inputs = augmentation(inputs, sample)
    for label_augmentation in task.label_augmentations:
        inputs, targets = label_augmentation(inputs, targets, sample)
    return replace(batch, inputs=inputs, targets=targets)
