"""A callback by which Hugging Face's `Trainer` tunes the hyperparameters of a self-tuning network while it trains.

The Trainer does forward, backward, clipping and step, and the callback gives the network its sample before, and does
what else the update rule does after the optimizer's step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tune_stn.integrations.shared import ValidationBatches, check_steps, find_network, in_mode_of, shuffled
from tune_stn.training.rules import get_rule
from tune_stn.training.self_tuner import SelfTuner

try:
    from transformers import Trainer, TrainerCallback
    from transformers.utils.generic import can_return_loss, find_labels
except ImportError as error:
    raise ImportError(
        "tune_stn.integrations.transformers needs transformers and accelerate: pip install 'tune_stn[transformers]'"
    ) from error

# Settings of `SelfTuner` that are the Trainer's own here.
OF_TRAINER = {"accumulate": "gradient_accumulation_steps", "clip_norm": "max_grad_norm"}
STATE = "self_tuning"  # in the optimizer's state, which is in the Trainer's checkpoints


class SelfTuningCallback(TrainerCallback):
    """Tunes, during `Trainer.train`, the Trainer's model, which `self_tuning` has made.

    After every `train_steps` optimizer steps comes a hyper-step on a batch of the evaluation data set, by the Trainer's
    own `compute_loss`, in evaluation mode. The Trainer's log has the hyperparameters as "hp/<name>". Checkpoints of the
    Trainer hold the state, in `optimizer.pt`: a resumed run goes on as it would have gone on.

    Args:
        trainer: The Trainer whose model is, or has in it, the self-tuning network.
        algorithm: The update rule: "auto", "progress-ratio", "stn", "delta-stn" or "fixed", as for `SelfTuner`.
        steps: Optimizer steps of the whole run; None for those that the Trainer expects.
        valid: The data set of hyper-steps, or the name of one where the Trainer's `eval_dataset` has several; None for
            `eval_dataset`. Its batches are drawn in random order.
        loss: A function of the model and the inputs of a batch that gives the loss, a tensor of one number, for what
            the callback does beside the Trainer's own training steps; None for the Trainer's `compute_loss`.
        seed: The seed of the order of these batches.
        settings: Settings of `SelfTuner`, such as hyper_lr and train_steps. Accumulation and clipping are the
            Trainer's own.

    Attributes:
        net: The self-tuning network.
        tuner: The `SelfTuner` at work, from the start of training.

    Raises:
        TypeError: `trainer` is no Trainer, or a setting is the Trainer's own.
        ValueError: The algorithm is unknown; the model has no self-tuning network; there is no evaluation data set, or
            there are several; or the Trainer does what the rule cannot follow: several devices, or scaled losses.

    Example:
        >>> net = self_tuning(model, space, start={"dropout": 0.1}, dropout={"*dropout": "dropout"})
        >>> trainer = Trainer(model=net, args=args, train_dataset=train, eval_dataset=valid)
        >>> trainer.add_callback(SelfTuningCallback(trainer))
        >>> trainer.train()
    """

    def __init__(
        self,
        trainer: Trainer,
        algorithm: str = "auto",
        *,
        steps: int | None = None,
        valid: Any = None,
        loss: Callable[[Any, dict[str, Any]], Tensor] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"trainer is a {type(trainer).__name__}: make the Trainer first, and then "
                "trainer.add_callback(SelfTuningCallback(trainer))"
            )
        for name in OF_TRAINER.keys() & settings.keys():
            raise TypeError(
                f"{name}={settings[name]!r} is the Trainer's own affair: TrainingArguments({OF_TRAINER[name]}=...)"
            )
        self.rule = get_rule(algorithm)
        self.trainer, self.algorithm, self.steps, self.loss = trainer, algorithm, steps, loss
        self.valid, self.seed, self.settings = valid, seed, settings
        assert trainer.model is not None
        self.model = trainer.model
        self.net = find_network(self.model)
        self.tuner: SelfTuner | None = None
        self._check_arguments()
        self._batches: ValidationBatches | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._inputs: Any = None  # of the present batch
        self._attached: Any = None
        if self.model is self.net and trainer.args.label_names is None:  # it looked at the class of the network
            of = type(self.net.network)
            trainer.label_names = find_labels(of)  # type: ignore[no-untyped-call]
            trainer.can_return_loss = can_return_loss(of)  # type: ignore[no-untyped-call]
        self.model.register_state_dict_post_hook(_apart)  # type: ignore[no-untyped-call]
        self._attach_before_loading()

    # Beginning and end ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the tuner; weights and optimizer are there now, those of a checkpoint too.

        Raises:
            ValueError: The run goes on from a checkpoint without the tuner's state, or is too short for a hyper-step.
        """
        optimizer = _unwrapped(self.trainer.optimizer)
        clip_norm: dict[str, Any] = {"clip_norm": float(args.max_grad_norm)} if args.max_grad_norm else {}
        steps = self.steps or state.max_steps
        self.tuner = SelfTuner(self.net, optimizer, algorithm=self.algorithm, steps=steps, **self.settings, **clip_norm)
        check_steps(self.rule, steps, self.tuner.rule.training.train_steps)
        if self.rule.tunes:
            loader = self.trainer.get_eval_dataloader(self.valid)
            self._batches = ValidationBatches(shuffled(loader, batch_size=args.eval_batch_size), seed=self.seed)
        if state.global_step > 0:
            if self._loaded is None:
                raise ValueError(
                    f"the run goes on from step {state.global_step}, but the checkpoint has no state of the "
                    "self-tuning network: it was written without this callback, or with save_only_model=True"
                )
            self.tuner.load_state_dict(copy.deepcopy(self._loaded["tuner"]))
            if self._batches is not None:
                self._batches.load_state_dict(self._loaded["validation"])
        self._loaded = None
        vars(self.trainer)["training_step"] = partial(self._training_step, type(self.trainer).training_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the Trainer as it was."""
        vars(self.trainer).pop("training_step", None)

    def _check_arguments(self) -> None:
        args = self.trainer.args
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(
                "the Trainer trains on several devices, whose hyperparameters would part: make one visible "
                "(CUDA_VISIBLE_DEVICES=0), and run several seeds side by side"
            )
        if args.fp16 and self.rule.response is not None:
            raise ValueError(
                f"fp16=True scales the training loss, and steps of {self.algorithm!r} beside it would not be scaled: "
                "take bf16=True, or algorithm='auto'"
            )
        data = self.trainer.eval_dataset
        if self.rule.tunes and self.valid is None and data is None:
            raise ValueError(
                "the Trainer has no eval_dataset, on which hyperparameters are tuned: Trainer(..., eval_dataset=...), "
                "or SelfTuningCallback(trainer, valid=dataset)"
            )
        if self.rule.tunes and self.valid is None and isinstance(data, dict):
            raise ValueError(
                f"eval_dataset has several data sets, {', '.join(data)}: say which tunes, "
                f"SelfTuningCallback(trainer, valid={next(iter(data))!r})"
            )

    # A training step --------------------------------------------------------------------------------------------------

    def _training_step(
        self, original: Callable[..., Tensor], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The Trainer's own, at the sample that the rule trains with."""
        assert self.tuner is not None
        self._inputs = inputs
        with self.net.using(self.tuner.training_sample()):
            return original(self.trainer, model, inputs, *args, **kwargs)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the rule does with the weights as they still are."""
        assert self.tuner is not None
        self.tuner.before_step(partial(self._closure, self._inputs))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once the weights have moved, and before the learning rate changes: the rule's own steps."""
        assert self.tuner is not None
        self.tuner.after_step(partial(self._closure, self._inputs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The hyper-step, where it is time for one."""
        assert self.tuner is not None
        if self.tuner.hyper_step_due:
            assert self._batches is not None
            self.tuner.hyper_step(partial(self._closure, self._batches.draw()))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the hyperparameters to what is logged."""
        values = {f"hp/{name}": value for name, value in self.net.hyper.mean_values().items()}
        for entry in (logs, state.log_history[-1] if state.log_history else None):
            if entry is not None:
                entry.update(values)

    def _closure(self, inputs: Any) -> Tensor:
        """The loss of a batch, beside the Trainer's own training step."""
        trainer = self.trainer
        prepared = trainer._prepare_inputs(inputs)
        with in_mode_of(self.net, self.model), trainer.compute_loss_context_manager():
            if self.loss is not None:
                return self.loss(trainer.model_wrapped, prepared)
            loss = trainer.compute_loss(trainer.model_wrapped, prepared)
        assert isinstance(loss, Tensor)  # with return_outputs=True alone it is more
        return loss

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _attach_before_loading(self) -> None:
        """See that the optimizer takes and gives the state: the Trainer makes it late, and loads it before it tells."""
        trainer = self.trainer
        if trainer.optimizer is not None:
            self._attach(_unwrapped(trainer.optimizer))
            return
        original = trainer.create_optimizer

        def create_optimizer(*args: Any, **kwargs: Any) -> Any:
            optimizer = original(*args, **kwargs)
            self._attach(_unwrapped(optimizer))
            return optimizer

        vars(trainer)["create_optimizer"] = create_optimizer

    def _attach(self, optimizer: torch.optim.Optimizer) -> None:
        if self._attached is optimizer:
            return
        self._attached = optimizer
        optimizer.register_state_dict_post_hook(self._give)
        optimizer.register_load_state_dict_pre_hook(self._take)

    def _give(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        if self.tuner is not None:
            validation = None if self._batches is None else self._batches.state_dict()
            state[STATE] = {"tuner": self.tuner.state_dict(), "validation": validation}

    def _take(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        self._loaded = state.get(STATE)
        return {name: value for name, value in state.items() if name != STATE}


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer in that of accelerate."""
    return (
        optimizer
        if isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "optimizer")
        else (optimizer.optimizer)
    )


def _apart(module: Any, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Tied weights are written twice: safetensors refuses tensors that share memory."""
    seen = set()
    for name, value in state.items():
        if isinstance(value, Tensor) and value.numel():
            if value.data_ptr() in seen:
                state[name] = value.clone()
            seen.add(value.data_ptr())
