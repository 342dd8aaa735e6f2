"""A model with its task and optimizers: the elementary steps from which the update rules are made."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tune_stn.data.splits import Split
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.space.sample import Sample
from tune_stn.space.tunable import Tunable
from tune_stn.tasks.task import Task


class Learner:
    """One network in training.

    Base and response parameters have optimizers of the same kind, stepped together (STN) or apart (Delta-STN). The
    training loss never gives a gradient to a hyperparameter, the validation loss never to a weight: gradients are
    asked for by parameter, so nothing can leak from one step into the next.

    Attributes:
        optimizers: "base", and where they exist "response" and "hyper".

    Raises:
        ValueError: the hyperparameters are to be tuned, but no layer responds to them.
    """

    def __init__(self, task: Task, model: SelfTuningModel) -> None:
        self.task = task
        self.model = model
        self.base = model.base_parameters()
        self.response = model.response_parameters()
        self.hyper: list[nn.Parameter] = []
        if isinstance(model.hyper, Tunable) and not self.response:
            left = "; ".join(f"{path} ({reason})" for path, reason in model.conversion.plain.items())
            raise ValueError(
                f"no layer of the model of task {task.name!r} has a response, so its hyperparameters have no gradient; "
                f"left plain: {left}"
            )
        training = task.training
        self.optimizers = {"base": training.make_optimizer(self.base)}
        if self.response:
            self.optimizers["response"] = training.make_optimizer(self.response)
        if isinstance(model.hyper, Tunable):
            self.hyper = [model.hyper.raw] + ([model.hyper.rho] if training.tune_scales else [])
            self.optimizers["hyper"] = training.make_hyper_optimizer(self.hyper)
        schedules = {
            name: training.make_lr_schedule(optimizer) for name, optimizer in self.optimizers.items() if name != "hyper"
        }
        self.lr_schedules = {name: schedule for name, schedule in schedules.items() if schedule is not None}

    def forward(self, inputs: Tensor, sample: Sample) -> Tensor:
        """Outputs at a sample, with the sample's augmentation if the model is in training mode."""
        if self.model.training:
            for augmentation in self.task.augmentations:
                inputs = augmentation(inputs, sample)
        with self.model.using(sample):
            outputs: Tensor = self.model(inputs)
        return outputs

    def training_loss(self, outputs: Tensor, targets: Tensor, sample: Sample) -> Tensor:
        """Mean loss of the batch plus the penalties, averaged over the rows of the sample."""
        loss = self.task.loss(outputs, targets)
        for penalty in self.task.penalties:
            loss = loss + penalty(self.model.network, sample).mean()
        return loss

    def validation_loss(self, batch: Split, sample: Sample) -> Tensor:
        """Unregularised loss: no dropout, no augmentation, no penalty."""
        self.model.eval()
        loss = self.task.loss(self.forward(batch.inputs, sample), batch.targets)
        self.model.train()
        return loss

    def step_weights(self, loss: Tensor, *names: str) -> None:
        """Step the optimizers `names` ("base", "response") down the training loss."""
        parameters = [p for name in names for p in self._parameters(name)]
        _set_gradients(loss, parameters, self.task.training.clip_norm)
        for name in names:
            self.optimizers[name].step()

    def step_hyper(self, loss: Tensor) -> None:
        """Step raw coordinates and scales down `loss - tau * entropy` (arXiv 1903.03088, eq. 16)."""
        hyper = self.model.hyper
        assert isinstance(hyper, Tunable)
        training = self.task.training
        if training.tune_scales and training.entropy_weight:
            loss = loss - training.entropy_weight * hyper.entropy()
        _set_gradients(loss, self.hyper, training.hyper_clip_norm)
        self.optimizers["hyper"].step()

    def hyper_step(self, batch: Split) -> None:
        """Step the hyperparameters down the validation loss, through the response (both papers, algorithm 1).

        Taken at a perturbed draw per example if the scales are tuned, else at the mean; values are detached, only the
        response input carries a gradient.
        """
        if self.task.training.tune_scales:
            sample = self.model.perturbed_sample(len(batch), keep_graph=True)
        else:
            sample = self.model.mean_sample(keep_graph=True)
        self.step_hyper(self.validation_loss(batch, sample))

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return {"base": self.base, "response": self.response}[name]


def _set_gradients(loss: Tensor, parameters: list[nn.Parameter], clip_norm: float | None) -> None:
    gradients: Iterable[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
