"""A rehearsal: each kind of step of a run, once, on a few examples, to find mistakes before a trial starts."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tune_stn.data.batches import Batch, tensors_in
from tune_stn.data.splits import Examples, Splits
from tune_stn.data.text import Text
from tune_stn.nn.conversion import Conversion
from tune_stn.tasks.own_code import own_code
from tune_stn.tasks.task import OfMean, Task
from tune_stn.training.evaluation import evaluate
from tune_stn.training.forward import Forward
from tune_stn.training.network import make_network
from tune_stn.training.rules import get_rule
from tune_stn.training.schedule import Schedule
from tune_stn.training.trainer import Trainer

FEW = 3  # examples of a batch, at first: batch norms need two, and three are seldom as many as classes or channels
WINDOW = 4  # time steps of a text, then


@dataclass(frozen=True, eq=False)
class Few:
    """A few random examples of a split: a pass over it is one batch of them.

    Attributes:
        examples: The split.
        rows: How many examples, where the batch is not smaller anyway.
    """

    examples: Examples
    rows: int

    def __len__(self) -> int:
        return min(self.rows, len(self.examples))

    def to(self, device: torch.device | str) -> Few:
        return replace(self, examples=self.examples.to(device))

    def steps(self, batch_size: int) -> int:
        return 1

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        return islice(self.examples.batches(min(batch_size, self.rows), generator), 1)

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        return self.examples.cycle(min(batch_size, self.rows), generator)

    def whole(self, batch_size: int) -> Iterator[Batch]:
        return self.batches(batch_size, torch.Generator())


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found, where it found nothing wrong.

    Attributes:
        conversions: Algorithm -> what was converted, bound and left plain in the network.
        remarks: What is worth a second look, a sentence each.
    """

    conversions: Mapping[str, Conversion]
    remarks: Sequence[str]


def rehearse(
    task: Task, algorithms: Iterable[str], splits: Splits, *, seed: int = 0, schedule: Schedule | None = None
) -> Rehearsed:
    """Do with a task, on the CPU, what a run of each algorithm does: set-up, a step of each kind, and an evaluation.

    Neither the task nor a random stream notices. Code of the user's may want more than a few examples, as an average
    over classes does: so only what fails on whole batches as well is refused.

    Args:
        task: The task.
        algorithms: Names of update rules.
        splits: What its data gave.
        seed: Seed of initial weights and noise. Default 0.
        schedule: What "fixed" replays. Default None.

    Raises:
        ValueError: A run could not be set up; the message says which part of the task is at fault, and how.
        OwnCodeError: Code of the user's raised an exception; it is a ValueError, too.
    """
    names = list(dict.fromkeys(algorithms))
    training = task.training
    # A part of a batch, of `accumulate` or for a response, is still more than one example: batch norms need two.
    few = math.ceil(FEW * training.accumulate / training.response_share)
    most = max(training.batch_size, training.eval_batch_size)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size")  # of torch's losses: `_broadcast` says it
        torch.manual_seed(seed)
        try:
            return _rehearse(_apart(task), names, _few(splits, min(few, most), WINDOW), seed, schedule)
        except ValueError:
            if few >= most:
                raise
        return _rehearse(_apart(task), names, _few(splits, most), seed, schedule)


def _few(splits: Splits, rows: int, window: int | None = None) -> Splits:
    """So many examples of each split; of a text, with a shorter window."""

    def few(split: Examples) -> Few:
        short = window is not None and isinstance(split, Text) and split.window > window
        return Few(replace(split, window=window) if short else split, rows)  # type: ignore[type-var]

    return Splits(few(splits.train), few(splits.valid), few(splits.test))


def _rehearse(task: Task, algorithms: list[str], few: Splits, seed: int, schedule: Schedule | None) -> Rehearsed:
    remarks = _check_parts(task, few, seed)
    conversions: dict[str, Conversion] = {}
    trainer: Trainer | None = None
    for algorithm in algorithms:
        if schedule is None and _is_part_of_another(algorithm, algorithms):
            continue
        with own_code(f"the set-up of {algorithm}", task.name):
            # Each kind of step is counted once for all: the counter takes as long as the step.
            trainer = Trainer(task, algorithm=algorithm, schedule=schedule, seed=seed, splits=few, like=trainer)
        training = task.training
        with own_code(f"a training step of {algorithm}", task.name):
            trainer.model.train()
            trainer.rule.train_step(next(few.train.batches(training.batch_size, torch.Generator())))
        if trainer.rule.tunes:
            with own_code(f"a hyper-step of {algorithm}", task.name):
                trainer.rule.hyper_step(next(few.valid.cycle(training.batch_size, torch.Generator())))
        with own_code(f"an evaluation of {algorithm}", task.name):
            report = evaluate(trainer.forward, few)
        with own_code("the lr_schedule", task.name):
            trainer.stepper.step_lr_schedules(report["val_loss"])
        conversions[algorithm] = trainer.model.conversion
    plain = next((one for name, one in conversions.items() if get_rule(name).response is None), None)
    found = {name: one for name in algorithms if (one := conversions.get(name, plain)) is not None}
    return Rehearsed(found, remarks)


def _is_part_of_another(algorithm: str, algorithms: Iterable[str]) -> bool:
    """Whether another of the rules does, on the plain network as well, all that this one does, and more."""
    rule = get_rule(algorithm)
    others = (get_rule(name) for name in algorithms if name != algorithm)
    return any(issubclass(other, rule) and other.response is None for other in others)


def _apart(task: Task) -> Task:
    """The task with copies of what may hold a state of its own, and uncompiled."""
    parts = {
        name: getattr(task, name) for name in ("loss", "metrics", "augmentations", "label_augmentations", "penalties")
    }
    with suppress(TypeError, RuntimeError):  # what cannot be copied is used as it is
        parts = copy.deepcopy(parts)
    return replace(task, training=replace(task.training, compile=False, keep_best=False), **parts)


# The parts of a task, one by one ------------------------------------------------------------------------------------


def _check_parts(task: Task, splits: Splits, seed: int) -> list[str]:
    """Call each part of a task on its own, so that an error says which it is; gives remarks.

    Raises:
        ValueError: One of them raised an exception, or gave something that is of no use.
    """
    batches: dict[str, Batch] = {}
    for name, split in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        with own_code(f"the {name} split", task.name):
            size = task.training.batch_size if name == "train" else task.training.eval_batch_size
            batches[name] = next(split.batches(size, torch.Generator())).unread()
    start = task.space.check_values(task.start)
    with own_code("the model", task.name):
        model = make_network(task, get_rule("fixed"), start=start, seed=seed, batch=batches["train"])
    _check_optimizers(task, model.base_parameters())
    forward, sample = Forward(task, model), model.hyper.constant_sample()

    batch = batches["train"]
    inputs, targets = batch.inputs, batch.targets
    for augmentation in task.augmentations:
        with own_code(f"the augmentation {type(augmentation).__name__}", task.name):
            inputs = augmentation(inputs, sample)
    for label_augmentation in task.label_augmentations:
        with own_code(f"the label augmentation {type(label_augmentation).__name__}", task.name):
            inputs, targets = label_augmentation(inputs, targets, sample)
    batch = replace(batch, inputs=inputs, targets=targets)
    model.train()
    with _locating(model.network, "train") as where, own_code("the model", task.name, where):
        outputs, activations = forward.observed(batch, sample)
    loss = _called("loss", task.loss, outputs, batch, "train", task)
    _called("loss", task.loss, outputs, _with_extremes(splits.train, batch), "train", task)
    if any(parameter.requires_grad for parameter in model.base_parameters()) and not loss.requires_grad:
        raise ValueError(
            f"loss of task {task.name!r} gave a tensor without a gradient: it is computed by functions of torch, from "
            "the outputs themselves, not from their .detach(), .numpy() or .argmax()"
        )
    for penalty in task.penalties:
        with own_code(f"the penalty {type(penalty).__name__}", task.name):
            penalty(model.network, sample, activations).mean()

    model.eval()
    with torch.no_grad():
        for name in ("valid", "test"):
            batch = batches[name]
            with _locating(model.network, name) as where, own_code("the model", task.name, where):
                outputs = forward.outputs(batch, sample)
            _called("loss", task.loss, outputs, _with_extremes(getattr(splits, name), batch), name, task)
            for metric, function in {"loss": task.loss, **task.metrics}.items():
                mean = function.mean if isinstance(function, OfMean) else function
                value = float(_called(metric, mean, outputs, batch, name, task))
                if isinstance(function, OfMean):
                    with own_code(f"the function of metric {metric!r}", task.name):
                        float(function.function(value))
    return _broadcast(task, outputs, batch)


def _broadcast(task: Task, outputs: Any, batch: Batch) -> list[str]:
    """That the loss takes each output with every target, if it does: (batch, 1) and (batch,) broadcast to a square.

    A loss that brings both into one shape itself gives the same when they have it already.
    """
    targets = batch.targets
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and targets.is_floating_point()):
        return []
    if outputs.shape == targets.shape or outputs.numel() != targets.numel():
        return []
    losses = []
    for given in (outputs, outputs.reshape(targets.shape)):
        with torch.random.fork_rng(devices=[]), suppress(Exception):
            losses.append(float(task.loss(given, targets)))
    if len(losses) < 2 or math.isclose(*losses, rel_tol=1e-4, abs_tol=1e-8):
        return []
    return [
        f"the loss of task {task.name!r} broadcasts outputs of shape {tuple(outputs.shape)} against targets of shape "
        f"{tuple(targets.shape)}, so that each output is compared with every target: give both one shape"
    ]


def _with_extremes(examples: Examples, batch: Batch) -> Batch:
    """The batch with the smallest and largest label of its whole split, where labels are integers: a few examples would
    seldom hold the one label of many that is out of range, as where labels are counted from 1."""
    split = examples.examples if isinstance(examples, Few) else examples
    labels, targets = getattr(split, "targets", None), batch.targets
    if not (isinstance(labels, Tensor) and isinstance(targets, Tensor)):
        return batch
    if not (labels.dim() == targets.dim() == 1 and labels.dtype == targets.dtype == torch.long):
        return batch
    targets = targets.clone()
    targets[-1], targets[0] = labels.min(), labels.max()
    return replace(batch, targets=targets)


def _check_optimizers(task: Task, parameters: list[nn.Parameter]) -> None:
    training = task.training
    with own_code("the optimizer", task.name):
        optimizer = training.make_optimizer(parameters)
    with own_code("the lr_schedule", task.name):
        schedule = training.make_lr_schedule(optimizer)
        if schedule is not None and not isinstance(schedule, ReduceLROnPlateau):
            optimizer.step()  # of no gradients; torch wants it first
            for _ in range(training.epochs):  # some end before, with an exception
                schedule.step()
    with own_code("the hyper_optimizer", task.name):
        training.make_hyper_optimizer([nn.Parameter(torch.zeros(()))], hyper_steps=1)


def _called(name: str, function: Any, outputs: Any, batch: Batch, split: str, task: Task) -> Tensor:
    """What a loss or metric gives for a batch, if that is one number; of a loss in training, a tensor."""
    what = "loss" if name == "loss" else f"metric {name!r}"

    def given() -> str:
        return f", given outputs {_shapes(outputs)} and targets {_shapes(batch.targets)} of the {split} split,"

    with own_code(f"the {what}", task.name, given):
        value = function(outputs, batch.targets)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value
    gave = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    if split != "train" and not isinstance(value, Tensor):
        try:
            return torch.tensor(float(value))
        except (TypeError, ValueError):
            pass
    advice = "; losses of torch do so with reduction='mean'" if name == "loss" else ""
    raise ValueError(
        f"{what} of task {task.name!r} gave {gave} for a batch of the {split} split: it gives the mean over the batch, "
        f"one number{', a tensor' if split == 'train' else ''}{advice}"
    )


@contextmanager
def _locating(network: nn.Module, split: str) -> Iterator[Any]:
    """Follow a forward pass; gives a function that says in which module it broke off, and what that was given."""
    entered: list[tuple[str, nn.Module, str]] = []
    paths = {id(module): path for path, module in network.named_modules()}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append((paths[id(module)], module, _shapes((args, kwargs))))

    def leave(*_: Any) -> None:
        entered.pop()

    def where() -> str:
        if not entered or not entered[-1][0]:
            return f", on the {split} split,"
        path, module, shapes = entered[-1]
        kind = type(module).__name__ if list(module.children()) else repr(module)
        return f", in its module {path!r}, {kind}, given {shapes} of the {split} split,"

    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield where


def _shapes(tree: Any) -> str:
    """Types and shapes of tensors, for people: `float32 (4, 20)`."""
    tensors = tensors_in(tree)
    if not tensors:
        return f"a {type(tree).__name__}"
    return " and ".join(f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}" for one in tensors)
