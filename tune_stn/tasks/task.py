"""A task: data, model, loss, search space and start values, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.augment import Augmentation, LabelAugmentation
from tune_stn.data.splits import Splits
from tune_stn.nn.penalties import Penalty
from tune_stn.space.search_space import SearchSpace
from tune_stn.tasks.arguments import READERS, check_arguments
from tune_stn.tasks.settings import Training

Function = Callable[[Tensor, Tensor], Tensor]
F_ = TypeVar("F_", bound=Function)
# Losses of torch that are means over the examples, or over the targets that are not -100.
MEANS: tuple[Function, ...] = (
    F.cross_entropy,
    F.nll_loss,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)


def mean_over_examples(function: F_) -> F_:
    """Mark a loss or metric as a mean over the examples of its batch, or in a text over the predicted tokens.

    It is then evaluated batch by batch. Anything else is evaluated once on the outputs of a whole split: an F1 or a
    class-weighted loss of the split is no mean of those of its batches.
    """
    function.of_examples = True  # type: ignore[attr-defined]
    return function


def is_mean_over_examples(function: Function) -> bool:
    """Whether it is marked as one, or one of torch's."""
    return getattr(function, "of_examples", False) or function in MEANS


@dataclass(frozen=True)
class OfMean:
    """A metric that is a function of a mean over the whole split, as perplexity is of the mean loss.

    Attributes:
        mean: function of `(outputs, targets)` giving the batch mean.
        function: of the mean over the split.
    """

    mean: Function
    function: Callable[[float], float]


Metric = Function | OfMean


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a method needs to know, the same for every method.

    Attributes:
        name: as shown in tables.
        model: makes the plain network; it may draw its weights from torch's global generator, which is seeded.
        data: seed -> splits; every method gets the same splits at a seed.
        space: the hyperparameters to be tuned.
        start: their start values; of `fixed`, the values.
        loss: `(outputs, targets)` -> mean loss of the batch, a scalar. Over a split it is evaluated on the outputs of
            the whole split, unless it is a mean over examples (`mean_over_examples`), as torch's functions without
            class weights are.
        dropout: path (or pattern) of a dropout module of the model -> hyperparameter that is its rate.
        weight_dropout: path (or pattern) of a layer -> hyperparameter that is the rate at which its weights are
            dropped, one draw a batch: entries of a linear or convolution layer (DropConnect), hidden-to-hidden weights
            of an LSTM, whole rows of an embedding. The space must list it in `per_batch`.
        norms: whether affine parts of normalisation layers respond too.
        augmentations: applied to the inputs of training batches, in this order.
        label_augmentations: applied after them to inputs and targets (label smoothing, mixup); the loss must then
            accept what they make of the targets.
        penalties: added to the training loss.
        metrics: name -> function of `(outputs, targets)`, evaluated over a split as the loss is, or an `OfMean`;
            reported as `val_<name>` and `test_<name>`.
        recurrent: whether the model is called as `model(inputs, state)` and gives `(outputs, state)`, as a recurrent
            language model is. The state is None at the beginning, and carried from batch to batch where the splits are
            a `Text`.
        training: how long and with which optimizers.
        description: one sentence.

    Raises:
        ValueError: an argument is of the wrong kind, a start value is missing or outside its domain, a binding names an
            unknown hyperparameter, a hyperparameter is read by nothing, or a metric is called "loss".
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[int], Splits]
    space: SearchSpace
    start: Mapping[str, float]
    loss: Function = F.cross_entropy
    dropout: Mapping[str, str] = field(default_factory=dict)
    weight_dropout: Mapping[str, str] = field(default_factory=dict)
    norms: bool = False
    augmentations: tuple[Augmentation, ...] = ()
    label_augmentations: tuple[LabelAugmentation, ...] = ()
    penalties: tuple[Penalty, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    recurrent: bool = False
    training: Training = field(default_factory=Training)
    description: str = ""

    def __post_init__(self) -> None:
        check_arguments(self.name, {field.name: getattr(self, field.name) for field in fields(self)})
        for readers in READERS:
            object.__setattr__(self, readers, tuple(getattr(self, readers)))
        self.space.check_values(self.start)
        if "loss" in self.metrics:
            raise ValueError(f"metrics of task {self.name!r}: 'loss' is the name of its loss; give the metric another")
        read = {*self.dropout.values(), *self.weight_dropout.values()}
        read.update(*(reader.names for reader in self.augmentations))
        read.update(*(reader.names for reader in self.label_augmentations))
        read.update(*(reader.names for reader in self.penalties))
        if unknown := sorted(read - set(self.space) - set(self.space.held)):
            raise ValueError(f"task {self.name!r} reads {unknown[0]!r}, not in its space: {', '.join(self.space)}")
        if unread := [name for name in self.space if name not in read]:
            raise ValueError(
                f"hyperparameter {unread[0]!r} of task {self.name!r} is read by nothing, so nothing can be learned "
                "about it: bind it to a dropout module or a layer's weights by path, an augmentation or a penalty; "
                "WeightDecay is one, and OptimizerWeightDecay for AdamW's own weight_decay"
            )

    def tuning_only(self, *names: str) -> Task:
        """The same task with these hyperparameters to tune, the others held at their start values.

        Raises:
            ValueError: a name is not of the space, or none is given.
        """
        if unknown := [name for name in names if name not in self.space]:
            raise ValueError(f"unknown hyperparameter {unknown[0]!r}; task {self.name!r} has {', '.join(self.space)}")
        held = {name: value for name, value in self.start.items() if name not in names}
        return replace(self, space=self.space.hold(held), start={name: self.start[name] for name in names})


@mean_over_examples
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of examples whose largest output is the target class; outputs `(batch, classes)`."""
    return (outputs.argmax(-1) == targets).float().mean()
