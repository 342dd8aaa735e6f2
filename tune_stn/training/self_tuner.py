"""The two calls by which a training loop tunes hyperparameters: a loop of one's own, and the built-in one too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tune_stn.data.batches import Batch
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.penalties import OptimizerWeightDecay
from tune_stn.nn.without_compiler import compiler_is_loaded
from tune_stn.space.sample import Draw, Sample
from tune_stn.space.tunable import Tunable
from tune_stn.tasks.settings import Training
from tune_stn.training.closure import Closure, bare_loss, training_loss, validation_loss
from tune_stn.training.cost import NoMeter
from tune_stn.training.forward import eagerly
from tune_stn.training.objectives import Objective
from tune_stn.training.optimizer_decay import check_held, follow
from tune_stn.training.processes import unwrapped
from tune_stn.training.reading import Noting
from tune_stn.training.rules import Rule, Tools, get_rule
from tune_stn.training.stepper import HYPER, Stepper

# Training steps in which a loop of one's own has the time to read each hyperparameter: not every batch need do.
SEEN = 50

# The settings that are not the loop's own.
SETTINGS = (
    "accumulate",
    "clip_norm",
    "entropy_weight",
    "hyper_clip_norm",
    "hyper_lr",
    "hyper_optimizer",
    "hyper_optimizer_args",
    "relative_hyper_lr",
    "response_share",
    "train_steps",
    "tune_scales",
)


class SelfTuner:
    """Training steps and hyper-steps of one network, for a training loop of one's own.

    A closure calls the network and returns the loss, as that of `torch.optim.LBFGS` does. What it takes may be given
    beside it, `tuner.train_step(loss, x, y)`: then a batch can go through the network in parts (`accumulate`), and
    what needs a part of a batch alone is cheaper.

    The loop calls `net.train()` and `net.eval()` as ever. In a hyper-step the closures are called in evaluation mode,
    that of the last training step too for "auto" and "progress-ratio": augmentations, penalties and whatever else
    regularises should ask for `net.training`. Inside a closure, `net.sample(len(x))` is the sample that the network
    reads for a batch of that length, so augmentations and penalties can read it too.

    Args:
        net: What `self_tuning` has made; or that in a `DistributedDataParallel`, which the closures then call. Each
            process has its part of a batch, of equal size, for training and hyper-steps; not for "delta-stn".
        optimizer: The optimizer of `net.parameters()`. It steps the weights and their response; hyperparameters have an
            optimizer of their own, and are left alone by this one. Learning-rate schedules of it stay the loop's.
        algorithm: The update rule: "auto", "progress-ratio", "stn" (the network needs a response), "delta-stn" (it
            needs one of `self_tuning(..., centred=True)`), or "fixed".
        steps: Training steps of the whole run. The time constants of "auto" and "progress-ratio" are shares of it, and
            so is the step size of the hyperparameters.
        decays: Weight decays of the optimizer itself, AdamW's say, that follow a hyperparameter; the closure's loss has
            no part in them, and what `train_step` returns has. The weights of each are groups of the optimizer of their
            own. For "auto", "progress-ratio" and "fixed".
        settings: Settings of `Training` that are not the loop's own: accumulate, clip_norm, entropy_weight,
            hyper_clip_norm, hyper_lr, hyper_optimizer, hyper_optimizer_args, relative_hyper_lr, response_share,
            train_steps (training steps between hyper-steps, 5) and tune_scales.

    Attributes:
        net: The network.
        rule: The update rule, with what it has learned.
        steps_done: Training steps so far.
        since_hyper_step: Training steps since the last hyper-step.

    Raises:
        TypeError: `net` is not a self-tuning network, or a setting is the loop's own.
        ValueError: The algorithm is unknown or needs another response, a setting is outside what it accepts, or the
            optimizer does not hold the network's parameters.

    Example:
        >>> net = self_tuning(model, space, start=start, dropout={"head.3": "dropout"})
        >>> tuner = SelfTuner(net, torch.optim.Adam(net.parameters(), 1e-3), steps=len(loader) * epochs)
        >>> for step, (x, y) in enumerate(loader):
        ...     tuner.train_step(lambda: F.cross_entropy(net(x), y))
        ...     if step % 5 == 4:
        ...         tuner.hyper_step(lambda: F.cross_entropy(net(xv), yv))
    """

    _looked_at: int | None  # training steps in which it was noted what they read; None: no more of them

    def __init__(
        self,
        net: SelfTuningModel | DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        *,
        algorithm: str = "auto",
        steps: int = 10_000,
        decays: Sequence[OptimizerWeightDecay] = (),
        **settings: Any,
    ) -> None:
        network, processes = unwrapped(net)
        if not isinstance(network, SelfTuningModel):
            compiled = " and call what torch.compile made of it in the closures" if hasattr(net, "_orig_mod") else ""
            raise TypeError(
                f"net is a {type(network).__name__}: give what self_tuning(model, space, ...) returns{compiled}"
            )
        net = network
        steps = int(steps) if isinstance(cast(Any, steps), np.integer) else steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps={steps!r}: accepted is an integer of 1 or more, the training steps of the run")
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            of_loop = unknown[0] in {field.name for field in dataclasses.fields(Training)}
            reason = "the loop's own affair" if of_loop else "no setting"
            raise TypeError(f"{unknown[0]}={settings[unknown[0]]!r} is {reason}: accepted are {', '.join(SETTINGS)}")
        rule = get_rule(algorithm)
        if processes is not None and rule.centred:
            raise ValueError(
                f"{algorithm!r} has steps of the response alone, which DistributedDataParallel cannot do: accepted are "
                "'auto', 'progress-ratio', 'stn' and 'fixed'"
            )
        training = Training(**settings)
        if rule.tunes and not isinstance(net.hyper, Tunable):
            raise ValueError(f"{algorithm!r} tunes, and the network was made with self_tuning(..., tuned=False)")
        if rule.response is not None:
            _check_response(net, algorithm, centred=rule.centred)
            check_held(decays, net.hyper.space, algorithm=algorithm)
        follow(optimizer, decays, net)
        agreed: Callable[[Objective], Objective] = (lambda f: f) if processes is None else processes.agreed
        stepper = _make_stepper(net, optimizer, training, responds=rule.response is not None, steps=steps)
        stepper.processes = processes
        self._begin(
            rule,
            Tools(
                model=net,
                training_loss=self._noting(agreed(partial(training_loss, net, decays=decays))),
                validation_loss=partial(validation_loss, net),
                bare_loss=agreed(partial(bare_loss, net)),
                steps=steps,
                stepper=stepper,
                training=training,
                meter=NoMeter(),
            ),
        )
        self._looked_at = 0 if rule.tunes else None
        net.slot.read.clear()
        # So a call of the network between the steps is at what the rule trains with.
        net.draws = rule.response is not None and not rule.centred
        net.tuned_by = algorithm

    @classmethod
    def of_batches(cls, rule: type[Rule], tools: Tools) -> SelfTuner:
        """The tuner of a loop whose objectives look at batches: its steps take a `Batch` instead of a closure.

        Args:
            rule: The update rule.
            tools: What it works with; its objectives are functions of a `Batch` and a sample.
        """
        tuner = cls.__new__(cls)
        tuner._begin(rule, tools)
        return tuner

    def _begin(self, rule: type[Rule], tools: Tools) -> None:
        self.net = tools.model
        self.rule = rule(tools)
        self.steps_done = 0
        self.since_hyper_step = 0
        self._looked_at = None

    def train_step(self, closure: Callable[..., Tensor] | Batch, *tensors: Any) -> Tensor:
        """Step the weights on a training batch; gradients are set, not added to what is there.

        Args:
            closure: Calls the network and returns the loss; of `tensors`, or of nothing.
            tensors: What it takes, with the examples along the first axis: tensors, or containers of tensors.

        Returns:
            The loss, detached.

        Raises:
            TypeError: The closure is not a function, or does not give a tensor of one number.
            RuntimeError: The network is in evaluation mode.
            ValueError: The closure did not call the network or its loss has no gradient; or a batch is to be
                accumulated and its tensors are not given.
        """
        if not self.net.training:
            raise RuntimeError("the network is in evaluation mode: call net.train() before train_step")
        parts = self.rule.training.accumulate
        if parts > 1 and not tensors and not isinstance(closure, Batch):
            raise ValueError(
                f"accumulate={parts} takes a batch apart, which needs its tensors: tuner.train_step(closure, x, y), "
                "with a closure of x and y"
            )
        with eagerly(self._looking and compiler_is_loaded()):  # compiled code notes nothing
            loss = self.rule.train_step(_batch(closure, tensors))
        self._stepped()
        return loss

    def hyper_step(self, closure: Callable[..., Tensor] | Batch, *tensors: Any) -> None:
        """Step the hyperparameters on a validation batch, which no training step has seen.

        Where the rule has nothing to do yet, as "auto" within five training steps of the last time, the closure is not
        called.

        Args:
            closure: Calls the network and returns the loss, as the one of `train_step`.
            tensors: What it takes, as in `train_step`.

        Raises:
            RuntimeError: There was no training step yet.
            ValueError: The rule tunes nothing; the loss has no gradient with respect to any hyperparameter; the closure
                did not call the network; or no training step has read a hyperparameter.
        """
        if not self.rule.tunes:
            raise ValueError(f"algorithm={self.rule.name!r} tunes no hyperparameters: leave hyper_step out")
        if self.steps_done == 0:
            raise RuntimeError("hyper_step comes after a train_step: there was none yet")
        batch = _batch(closure, tensors)
        if not self.rule.due:
            return
        self._check_read()
        self.since_hyper_step = 0
        if self.rule.response is not None and not torch.is_grad_enabled():
            raise ValueError(f"hyper_step of {self.rule.name!r} needs a gradient: call it outside of torch.no_grad()")
        hyper = self.rule.hyper
        hyper.raw.grad = None
        processes = self.rule.stepper.processes
        with nullcontext() if processes is None else processes.apart():
            self.rule.hyper_step(batch)
        if self.rule.response is not None and hyper.raw.grad is None:
            raise ValueError(
                "the loss of hyper_step has no gradient with respect to any hyperparameter: the closure calls the "
                "network that self_tuning returned, outside of torch.no_grad() and without detaching its outputs"
            )
        if isinstance(batch, Closure):
            for parameter in hyper.parameters():
                parameter.grad = None  # or a loop that clips all of the network's gradients would count it

    @property
    def hyper_step_due(self) -> bool:
        """Whether a hyper-step is to come now: `train_steps` training steps after the last, if the rule has one due."""
        return self.rule.tunes and self.since_hyper_step >= self.rule.training.train_steps and self.rule.due

    # The loop of another library, which does backward and step itself -------------------------------------------------

    def training_sample(self) -> Sample | Draw:
        """What the rule trains the weights with, for one batch: `with net.using(tuner.training_sample()):` around it.

        Example:
            >>> with net.using(tuner.training_sample()):
            ...     F.cross_entropy(net(x), y).backward()
            >>> tuner.before_step(lambda: F.cross_entropy(net(x), y))
            >>> optimizer.step()
            >>> tuner.after_step(lambda: F.cross_entropy(net(x), y))
        """
        return self._noted(self.net.perturbed_draw() if self.net.draws else self.net.hyper.constant_sample())

    def before_step(self, closure: Callable[..., Tensor], *tensors: Any) -> None:
        """Before the optimizer steps on gradients that another loop has made; with `after_step`, a `train_step`.

        Gradients of parameters that this step does not move are dropped.

        Args:
            closure: Calls the network and returns the loss, as the one of `train_step`.
            tensors: What it takes, as in `train_step`.

        Raises:
            ValueError: The rule cannot be run by another loop.
        """
        if self.rule.trains is None:
            raise ValueError(
                f"algorithm={self.rule.name!r} does its training step itself, and another loop cannot: call "
                "train_step, or say in the rule what it `trains`"
            )
        self.rule.before_step(Closure(closure, tensors))
        self.rule.stepper.drop_others(*self.rule.trains)

    def after_step(self, closure: Callable[..., Tensor], *tensors: Any) -> None:
        """After the optimizer has stepped: what else the rule does with the batch, a step of its response, say.

        Args:
            closure: Calls the network and returns the loss, as the one of `train_step`.
            tensors: What it takes, as in `train_step`.
        """
        self.rule.after_step(Closure(closure, tensors))
        self._stepped()

    # What a loop reads -------------------------------------------------------------------------------------------

    @property
    def _unread(self) -> list[str]:
        """Hyperparameters that no training step was seen to read."""
        return [name for name in self.net.hyper.space if name not in self.net.slot.read]

    @property
    def _looking(self) -> bool:
        return self._looked_at is not None and self._looked_at < SEEN and bool(self._unread)

    def _noted(self, sample: Sample | Draw) -> Sample | Draw:
        """The same sample, which notes what is read of it, while there is something that was not."""
        if not self._looking:
            return sample
        if isinstance(sample, Draw):
            return Draw(lambda rows: cast(Sample, self._noted(sample.of(rows))))
        return dataclasses.replace(sample, values=Noting(sample.values, self.net.slot.read))

    def _noting(self, objective: Objective) -> Objective:
        return lambda batch, sample: objective(batch, self._noted(sample))

    def _check_read(self) -> None:
        if self._looked_at is None or self._looked_at < SEEN:
            return
        if unread := self._unread:
            raise ValueError(
                f"hyperparameter {unread[0]!r} was read by nothing in {self._looked_at} training steps: bind it, "
                "self_tuning(..., dropout={path: name}), to a dropout that the forward pass calls, read it in the "
                f"closure, net.sample(len(x))[{unread[0]!r}], or outside of it, net.hyperparameters(); or leave it out "
                "of the space"
            )
        self._looked_at = None

    def _stepped(self) -> None:
        self.steps_done += 1
        if self._looked_at is not None:
            self._looked_at += 1
        self.since_hyper_step += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside those of the network and its optimizer: tensors and plain values only."""
        optimizers = self.rule.stepper.optimizers
        return {
            "algorithm": self.rule.name,
            "steps_done": self.steps_done,
            "since_hyper_step": self.since_hyper_step,
            "rule": self.rule.state_dict(),
            "hyper_optimizer": optimizers[HYPER].state_dict() if HYPER in optimizers else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: It is of another algorithm.
        """
        if state["algorithm"] != self.rule.name:
            raise ValueError(f"the state is of algorithm {state['algorithm']!r}, this tuner of {self.rule.name!r}")
        self.steps_done, self.since_hyper_step = state["steps_done"], state["since_hyper_step"]
        self._looked_at = None if self.steps_done >= SEEN else self._looked_at
        self.rule.load_state_dict(state["rule"])
        if HYPER in self.rule.stepper.optimizers:
            self.rule.stepper.optimizers[HYPER].load_state_dict(state["hyper_optimizer"])


def _batch(closure: Callable[..., Tensor] | Batch, tensors: tuple[Any, ...]) -> Batch | Closure:
    if not (isinstance(closure, Batch) or callable(closure)):
        raise TypeError(
            f"closure is a {type(closure).__name__}: give a function that calls the network and returns the loss, "
            "lambda: F.cross_entropy(net(x), y)"
        )
    return closure if isinstance(closure, Batch) else Closure(closure, tensors)


def _check_response(net: SelfTuningModel, algorithm: str, *, centred: bool) -> None:
    if not net.response_parameters():
        raise ValueError(
            f"no layer of the network has a response, which {algorithm!r} learns: give self_tuning a response, or use "
            f"algorithm='auto', which needs none; left plain: {net.conversion.left_plain}"
        )
    if net.centred != centred:
        raise ValueError(
            f"{algorithm!r} needs a network of self_tuning(..., centred={centred}); this one has centred={net.centred}"
        )


def _make_stepper(
    net: SelfTuningModel, optimizer: torch.optim.Optimizer, training: Training, *, responds: bool, steps: int
) -> Stepper:
    """The user's optimizer for the weights and their response, and another one for the hyperparameters."""
    held = {id(p): p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if not any(id(p) in held for p in net.base_parameters()):
        raise ValueError(
            "the optimizer holds no weight of the network: self_tuning returns a copy of the model, so make the "
            "optimizer of net.parameters() after it"
        )
    others = {id(p) for p in (*net.response_parameters(), *net.hyper.parameters())}
    groups = {"base": [p for p in held.values() if id(p) not in others]}  # with those of a loss of one's own
    optimizers = {"base": optimizer}
    if responds:
        groups["response"], optimizers["response"] = net.response_parameters(), optimizer
        if any(id(p) not in held for p in groups["response"]):
            raise ValueError("the optimizer lacks parameters of the response: make it of net.parameters()")
    if isinstance(net.hyper, Tunable):
        groups[HYPER] = [net.hyper.raw, *([net.hyper.rho] if training.tune_scales else [])]
        optimizers[HYPER] = training.make_hyper_optimizer(groups[HYPER], hyper_steps=steps // training.train_steps)
    return Stepper(optimizers, groups=groups)
