"""A model with its task and optimizers: the elementary steps from which the update rules are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tune_stn.data.splits import Split
from tune_stn.nn.cuda_graph import Recorded
from tune_stn.nn.first_order import first_order, map_tensors, to_first_order
from tune_stn.nn.lstm import ResponseLSTM
from tune_stn.nn.lstm_graph import Graphed
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.observe import Activations, observing
from tune_stn.nn.penalties import NORMS
from tune_stn.space.sample import Sample
from tune_stn.space.tunable import Tunable
from tune_stn.tasks.task import Task

# Torch, as of 2.13, cannot trace the tangents of norms and attention; those of an LSTM, which is not compiled, would
# have to pass between compiled code and other.
WITHOUT_COMPILED_TANGENTS = (nn.LSTM, nn.MultiheadAttention, *NORMS)


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
        self._forward: Callable[..., Any] = model
        self._first_order = first_order(model)
        self._recorded: dict[str, Recorded] | None = None
        if training.compile:
            self._compile()
        if training.cuda_graphs and self.base[0].is_cuda:
            self.record_steps()
        self.observed = {path for penalty in task.penalties for path in penalty.paths}
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

    def _compile(self) -> None:
        model = self.model
        for module in model.modules():
            if isinstance(module, nn.LSTM):  # its loop over time would be unrolled: a minute for ten steps
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign,no-untyped-call]
        # The method, not the module: that would be wrapped in another, which warns of every hook on its way.
        self._forward = torch.compile(model.forward)
        if not any(isinstance(module, WITHOUT_COMPILED_TANGENTS) for module in model.modules()):
            self._first_order = torch.compile(first_order(model.forward))

    def record_steps(self) -> None:
        """From now on replay what can be as CUDA graphs: losses and gradients of whole steps; or, where a network
        carries a state from batch to batch, the loops of its LSTMs over time.
        """
        self._recorded = {}
        graphed = Graphed(fuse=torch.compile if self.task.training.compile else None)
        for module in self.model.modules():
            if isinstance(module, ResponseLSTM):
                module.recurrence = graphed

    def augmented(self, batch: Split, sample: Sample) -> Split:
        """A training batch after the task's augmentations at a sample."""
        inputs, targets = batch.inputs, batch.targets
        for augmentation in self.task.augmentations:
            inputs = augmentation(inputs, sample)
        for label_augmentation in self.task.label_augmentations:
            inputs, targets = label_augmentation(inputs, targets, sample)
        return replace(batch, inputs=inputs, targets=targets)

    def forward(self, batch: Split, sample: Sample) -> Any:
        """Outputs at a sample, to first order in the response where that is linearised; in the training's precision
        inside and in that of the inputs outside.

        A recurrent network begins at the state before the batch, and leaves the one after it.
        """
        model = self._first_order if sample.linearise else self._forward
        reduced = self.task.training.precision == "bfloat16"
        device = batch.inputs.device.type
        available = torch.amp.is_autocast_available(device)
        precision = torch.autocast(device, torch.bfloat16, enabled=reduced) if available else nullcontext()
        with self.model.using(sample), precision:
            outputs, state = call(self.task, model, batch)
        # A response step looks at the same batch as the base step before it, which has left the state already.
        if batch.carry is not None and self.task.recurrent and not sample.linearise:
            batch.carry.leave(state, batch.rows)
        return map_tensors(_as_single, outputs) if reduced else outputs

    def predict(self, batch: Split, sample: Sample) -> tuple[Any, Activations]:
        """Outputs at a sample, and what the penalties want to see."""
        if not self.observed:
            return self.forward(batch, sample), {}
        seen_as = to_first_order if sample.linearise else None
        with observing(self.model.network, self.observed, seen_as) as activations:
            return self.forward(batch, sample), activations

    def training_loss(self, batch: Split, sample: Sample) -> Tensor:
        """Mean loss of an augmented batch plus the penalties, averaged over the rows of the sample.

        Args:
            batch: as drawn.
            sample: for augmentation, network and penalties.
        """
        batch = self.augmented(batch, sample)
        outputs, activations = self.predict(batch, sample)
        loss = self.task.loss(outputs, batch.targets)
        for penalty in self.task.penalties:
            loss = loss + penalty(self.model.network, sample, activations).mean()
        return loss

    def validation_loss(self, batch: Split, sample: Sample) -> Tensor:
        """Unregularised loss: no dropout, no augmentation, no penalty."""
        self.model.eval()
        loss = self.task.loss(self.forward(batch, sample), batch.targets)
        self.model.train()
        return loss

    def step_weights(self, batch: Split, draw: Callable[[int], Sample], *names: str) -> Tensor:
        """Step the optimizers `names` ("base", "response") down the training loss; gives the loss, detached.

        The gradient is that of the whole batch, gathered over `accumulate` parts.

        Args:
            batch: as drawn.
            draw: gives a sample for so many examples.
            names: of the optimizers; the same names always come with the same `draw`.
        """
        training = self.task.training
        parameters = [p for name in names for p in {"base": self.base, "response": self.response}[name]]

        def losses(batch: Split) -> Iterator[Tensor]:
            sample = draw(len(batch))
            for part, share in _parts(batch, training.accumulate):
                yield self.training_loss(part, sample.rows(part.rows)) * share

        total = self._set_gradients(" ".join(names), losses, batch, parameters, training.clip_norm)
        for name in names:
            self.optimizers[name].step()
        return total

    def hyper_step(self, batch: Split) -> None:
        """Step the hyperparameters down the validation loss, through the response (both papers, algorithm 1).

        Down `loss - tau * entropy` (arXiv 1903.03088, eq. 16) and taken at a perturbed draw per example if the scales
        are tuned, else at the mean; values are detached, only the response input carries a gradient.
        """
        training, hyper = self.task.training, self.model.hyper
        assert isinstance(hyper, Tunable)

        def losses(batch: Split) -> Iterator[Tensor]:
            for part, share in _parts(batch, training.accumulate):
                if training.tune_scales:
                    sample = self.model.perturbed_sample(len(part), keep_graph=True)
                else:
                    sample = self.model.mean_sample(keep_graph=True)
                loss = self.validation_loss(part, sample)
                if training.tune_scales and training.entropy_weight:
                    loss = loss - training.entropy_weight * hyper.entropy()
                yield loss * share

        self._set_gradients("hyper", losses, batch, self.hyper, training.hyper_clip_norm)
        before = hyper.raw.detach().clone() if training.relative_hyper_lr else None
        self.optimizers["hyper"].step()
        if before is not None:
            with torch.no_grad():
                hyper.raw.copy_(torch.lerp(before, hyper.raw, hyper.relative_speed(before)))
        hyper.confine()

    def _set_gradients(
        self,
        kind: str,
        losses: Callable[[Split], Iterator[Tensor]],
        batch: Split,
        parameters: list[nn.Parameter],
        clip_norm: float | None,
    ) -> Tensor:
        """Set the parameters' gradients to those of the sum of the losses, one after the other, and give that sum.

        Args:
            kind: of the step; whatever it does but for the batch is the same each time.
            losses: of a batch.
            batch: the batch.
            parameters: that get a gradient.
            clip_norm: largest norm of them all.
        """

        def gradients(inputs: Tensor, targets: Tensor) -> tuple[Tensor | None, ...]:
            total = torch.zeros((), device=inputs.device)
            for parameter in parameters:
                parameter.grad = None
            for loss in losses(replace(batch, inputs=inputs, targets=targets)):
                # Not `autograd.grad`: it gives two summands one and the same tensor, which clipping would scale twice.
                torch.autograd.backward(loss, inputs=parameters)
                total = total + loss.detach()
            return total, *(parameter.grad for parameter in parameters)

        if self._recorded is None or batch.carry is not None:
            total, *_ = gradients(batch.inputs, batch.targets)
        else:
            if kind not in self._recorded:
                self._recorded[kind] = Recorded(gradients, copies=False)
            total, *found = self._recorded[kind](batch.inputs, batch.targets)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        assert total is not None
        return total


def call(task: Task, model: Callable[..., Any], batch: Split) -> tuple[Any, Any]:
    """The network's outputs on a batch and, of a recurrent one, its state after it.

    Raises:
        TypeError: a recurrent network gave no pair.
    """
    if not task.recurrent:
        return model(batch.inputs), None
    result = model(batch.inputs, None if batch.carry is None else batch.carry.before(batch.rows))
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"the recurrent network of task {task.name!r} gave {type(result).__name__}: it is called as "
            "model(inputs, state), with None for the state at the beginning, and gives (outputs, state)"
        )
    return result


def _as_single(outputs: Tensor) -> Tensor:
    # Losses are summed over many classes and examples, which half a mantissa cannot hold.
    return outputs.float() if outputs.is_floating_point() else outputs


def _parts(batch: Split, count: int) -> Iterator[tuple[Split, float]]:
    """The batch in `count` parts of consecutive rows, each with its share of the batch."""
    size = -(-len(batch) // count)
    for start in range(0, len(batch), size):
        part = batch.part(start, start + size)
        yield part, len(part) / len(batch)
