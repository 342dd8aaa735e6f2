"""A task: data, model, loss, search space and start values, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar, overload

from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.augment import Augmentation, LabelAugmentation
from tune_stn.data.batches import IGNORED
from tune_stn.data.splits import Splits
from tune_stn.nn.penalties import Penalty
from tune_stn.space.search_space import SearchSpace
from tune_stn.tasks.arguments import READERS, check_arguments
from tune_stn.tasks.settings import Training

Function = Callable[[Tensor, Tensor], Tensor]
F_ = TypeVar("F_", bound=Function)
# Losses of torch that are means over the examples, or over the targets that are not ignored.
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
# The same as modules; they are such means without class weights, and with their default reduction.
MEAN_MODULES = (
    nn.CrossEntropyLoss,
    nn.NLLLoss,
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
)
# Those of them that leave targets of -100 out; to the others it is a number like any other.
IGNORING = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)


@overload
def mean_over_examples(function: F_) -> F_: ...
@overload
def mean_over_examples(*, count: Callable[[Any], int | Tensor]) -> Callable[[F_], F_]: ...
def mean_over_examples(
    function: F_ | None = None, *, count: Callable[[Any], int | Tensor] | None = None
) -> F_ | Callable[[F_], F_]:
    """Mark a loss or metric as a mean over the examples of its batch, or over what else `count` counts.

    It is then evaluated batch by batch. Anything else is evaluated once on the outputs of a whole split: an F1 or a
    class-weighted loss of the split is not the mean of those of its batches.

    Args:
        function: The loss or metric, of `(outputs, targets)`.
        count: The number of things that the mean of a batch is over, of its targets. By default the examples, or, of
            targets that are one tensor of integers, those that are not -100: in a text, the predicted tokens.

    Example:
        >>> @mean_over_examples(count=lambda targets: (targets != PAD).sum())
        ... def loss(outputs, targets):
        ...     return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=PAD)
    """
    if function is None:
        return partial(_marked, count=count)
    return _marked(function, count=count)


def _marked(function: F_, *, count: Callable[[Any], int | Tensor] | None) -> F_:
    function.of_examples, function.count = True, count  # type: ignore[attr-defined]
    return function


def is_mean_over_examples(function: Function) -> bool:
    """Whether it is marked as one, or one of torch's."""
    reduction, weight = (getattr(function, name, None) for name in ("reduction", "weight"))
    of_torch = type(function) in MEAN_MODULES and reduction == "mean" and weight is None
    return getattr(function, "of_examples", False) or of_torch or function in MEANS


def counted(function: Function, targets: Any) -> int | None:
    """What a mean of a batch is over, where the function itself says it: it is marked so, or has an index to ignore."""
    if count := getattr(function, "count", None):
        return int(count(targets))
    of_torch = function in MEANS or type(function) in MEAN_MODULES
    if of_torch and function not in IGNORING and type(function) not in IGNORING:
        return len(targets)
    index = getattr(function, "ignore_index", getattr(function, "keywords", {}).get("ignore_index"))
    if index is None or not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    return int((targets != index).sum())


@dataclass(frozen=True)
class OfMean:
    """A metric that is a function of a mean over the whole split, as perplexity is of the mean loss.

    Attributes:
        mean: Function of `(outputs, targets)` giving the batch mean.
        function: Function of the mean over the split.
    """

    mean: Function
    function: Callable[[float], float]


Metric = Function | OfMean


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a method needs to know, the same for every method.

    Attributes:
        name: Name shown in tables.
        model: Function that makes the plain network; it may draw its weights from torch's global generator, which is
            seeded.
        data: Function of a seed that gives the splits; every method gets the same splits at a seed.
        space: The hyperparameters to be tuned.
        start: Name -> start value of each hyperparameter; `fixed` keeps these values.
        loss: `(outputs, targets)` -> mean loss of the batch, a scalar. Over a split it is evaluated on the outputs of
            the whole split, unless it is a mean over examples (`mean_over_examples`), as torch's functions and modules
            without class weights are.
        dropout: Path (or pattern) of a dropout module of the model -> hyperparameter that is its rate. Default none.
        weight_dropout: Path (or pattern) of a layer -> hyperparameter that is the rate at which its weights are
            dropped, one draw a batch: entries of a linear or convolution layer (DropConnect), hidden-to-hidden weights
            of an LSTM, whole rows of an embedding. The space must list it in `per_batch`. Default none.
        norms: Whether affine parts of normalisation layers respond too. Default False.
        augmentations: Augmentations of the inputs of training batches, in this order. Default none.
        label_augmentations: Augmentations of inputs and targets (label smoothing, mixup), applied after those; the loss
            must then accept what they make of the targets. Default none.
        penalties: Terms added to the training loss. Default none.
        metrics: Name -> function of `(outputs, targets)`, evaluated over a split as the loss is, or an `OfMean`;
            reported as `val_<name>` and `test_<name>`. Default none.
        recurrent: Whether the model is called as `model(inputs, state)` and gives `(outputs, state)`, as a recurrent
            language model is. The state is None at the beginning, and carried from batch to batch where the splits are
            a `Text`. Default False.
        training: Settings of a training run: how long and with which optimizers.
        description: One sentence that says what the task is. Default "".

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
        if unknown := sorted(read - set(self.space) - set(self.space.fixed)):
            raise ValueError(f"task {self.name!r} reads {unknown[0]!r}, not in its space: {', '.join(self.space)}")
        if unread := [name for name in self.space if name not in read]:
            raise ValueError(
                f"hyperparameter {unread[0]!r} of task {self.name!r} is read by nothing, so nothing can be learned "
                "about it: bind it to a dropout module or a layer's weights by path, an augmentation or a penalty; "
                "WeightDecay is one, and OptimizerWeightDecay for AdamW's own weight_decay"
            )

    def tuning_only(self, *names: str) -> Task:
        """The same task with these hyperparameters to tune, the others fixed at their start values.

        Raises:
            ValueError: a name is not of the space, or none is given.
        """
        if unknown := [name for name in names if name not in self.space]:
            raise ValueError(f"unknown hyperparameter {unknown[0]!r}; task {self.name!r} has {', '.join(self.space)}")
        fixed = {name: value for name, value in self.start.items() if name not in names}
        return replace(self, space=self.space.fix(fixed), start={name: self.start[name] for name in names})


@mean_over_examples
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the targets, those of -100 left out, that are the class of the largest output, `(..., classes)`."""
    return (outputs.argmax(-1) == targets).sum() / (targets != IGNORED).sum()
