"""What the loop asks of an update rule, and what it gives to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from tune_stn.data.batches import Batch
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.response import ResponseSize
from tune_stn.space.sample import Draw, Sample
from tune_stn.space.tunable import Tunable
from tune_stn.tasks.settings import Training
from tune_stn.training.closure import Closure
from tune_stn.training.cost import Meter
from tune_stn.training.objectives import Objective
from tune_stn.training.stepper import Stepper

AnyBatch = Batch | Closure
"""A batch of the built-in loop, or of a loop of one's own."""


@dataclass(frozen=True)
class Tools:
    """What a rule works with, for the whole of one run.

    Attributes:
        model: The network with its hyperparameters, which draws the samples.
        training_loss: The training objective f of a batch at a sample.
        validation_loss: The validation objective F of a batch at a sample.
        bare_loss: The loss of a batch at a sample, without augmentations and penalties, in the mode that the network
            is in.
        steps: The training steps of the whole run.
        stepper: The optimizers of the groups "base", "response" and "hyper".
        training: The settings of the run.
        meter: The meter, which a rule charges for each kind of step: "train", "response" or "hyper".
    """

    model: SelfTuningModel
    training_loss: Objective
    validation_loss: Objective
    bare_loss: Objective
    steps: int
    stepper: Stepper
    training: Training
    meter: Meter


class Rule(Protocol):
    """How one algorithm spends a training batch and, if it tunes, a validation batch; one instance for each run.

    A rule is a class that inherits from this one and has a line in `RULES`. What a run of it learns beside parameters
    is in its state, which checkpoints hold and a restart takes back.

    Args:
        tools: What it works with; each of them becomes an attribute.

    Attributes:
        name: The name, as in `config["algorithm"]`.
        tunes: Whether hyperparameters are a tunable state, and `hyper_step` is called.
        centred: Whether responses see the offset from the mean instead of the raw coordinate.
        response: The default response size; None for a plain network.
        why: Why it is that size, as a user may be told.
        trains: The groups that a step on the training loss moves, where that step may also be the one of another loop,
            which calls `before_step` and `after_step` around it; None where it may not.
    """

    name: ClassVar[str]
    tunes: ClassVar[bool]
    centred: ClassVar[bool]
    response: ClassVar[ResponseSize | None]
    why: ClassVar[str]
    trains: ClassVar[tuple[str, ...] | None] = None

    model: SelfTuningModel
    training_loss: Objective
    validation_loss: Objective
    bare_loss: Objective
    steps: int
    stepper: Stepper
    training: Training
    meter: Meter

    def __init__(self, tools: Tools) -> None:
        self.model = tools.model
        self.training_loss, self.validation_loss = tools.training_loss, tools.validation_loss
        self.bare_loss, self.steps = tools.bare_loss, tools.steps
        self.stepper = tools.stepper
        self.training = tools.training
        self.meter = tools.meter

    def train_step(self, batch: AnyBatch) -> Tensor:
        """Step the weights on a batch of the training split; gives the training loss, detached."""
        ...

    def before_step(self, batch: AnyBatch) -> None:
        """What `train_step` does before the weights move on this batch."""

    def after_step(self, batch: AnyBatch) -> None:
        """What `train_step` does once the weights have moved on this batch."""

    @property
    def due(self) -> bool:
        """Whether a hyper-step has something to do now; if not, no validation batch is drawn for it."""
        return True

    def hyper_step(self, batch: AnyBatch) -> None:
        """Step the hyperparameters on a batch of the validation split; called only if the rule tunes."""
        raise NotImplementedError(f"the rule {self.name!r} tunes no hyperparameters")

    def state_dict(self) -> dict[str, Any]:
        """What a run of the rule has learned beside parameters: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; it is this rule's to keep."""

    def perturbed(self, batch: AnyBatch, *, keep_graph: bool = False, linearise: bool = False) -> Sample | Draw:
        """lambda + eps, eps ~ p(eps | sigma), one for each example; of a closure, as soon as it calls the network."""
        if isinstance(batch, Closure):
            return self.model.perturbed_draw(keep_graph=keep_graph, linearise=linearise)
        return self.model.perturbed_sample(len(batch), keep_graph=keep_graph, linearise=linearise)

    @property
    def hyper(self) -> Tunable:
        """The tunable hyperparameters."""
        assert isinstance(self.model.hyper, Tunable)
        return self.model.hyper
