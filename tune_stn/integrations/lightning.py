"""A callback by which a Lightning module tunes the hyperparameters of its self-tuning network during `Trainer.fit`.

Automatic and manual optimization stay what they are: Lightning does forward, backward, clipping and step, and the
callback gives the network its sample before, and does what else the update rule does after the optimizer's step.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tune_stn.integrations.shared import ValidationBatches, check_steps, find_network, in_mode_of, shuffled
from tune_stn.nn.model import SelfTuningModel
from tune_stn.training.rules import get_rule
from tune_stn.training.self_tuner import SelfTuner

try:
    import lightning.pytorch as pl
    from torchmetrics import Metric  # a dependency of Lightning
except ImportError as error:
    raise ImportError("tune_stn.integrations.lightning needs Lightning: pip install 'tune_stn[lightning]'") from error

# Settings of `SelfTuner` that are the Trainer's own here.
OF_TRAINER = {"accumulate": "accumulate_grad_batches", "clip_norm": "gradient_clip_val"}


class SelfTuningCallback(pl.Callback):
    """Tunes, during `Trainer.fit`, the network of the module that `self_tuning` has made.

    The module stays as it is. One whose steps call `self(...)` alone may also be made self-tuning as a whole:
    `trainer.fit(self_tuning(module, space, ...).in_own_class(), ...)`.

    After every `train_steps` optimizer steps comes a hyper-step on a validation batch, and then the hyperparameters are
    logged as "hp/<name>". Its loss is that of `training_step`, called in evaluation mode
    and without its logging: augmentations and penalties in there should ask for `self.training`. Some rules ask for the
    loss of the training batch a second time, in the same way.

    Checkpoints of Lightning hold the state, and torch's random states: a run goes on from the end of an epoch as it
    would have gone on.

    Args:
        algorithm: The update rule: "auto", "progress-ratio", "stn", "delta-stn" or "fixed", as for `SelfTuner`.
        steps: Optimizer steps of the whole run; None for those that the Trainer expects.
        valid: The loader of the batches of hyper-steps; None for the Trainer's validation loader. One that is in the
            order of its data set is shuffled.
        loss: A function of the module and a batch that calls the network and returns the loss, a tensor of one number,
            for what the callback does beside Lightning's own training steps; None for that of `training_step`.
        seed: The seed of the order of the validation batches.
        settings: Settings of `SelfTuner`, such as hyper_lr and train_steps. Accumulation and clipping are the
            Trainer's own.

    Attributes:
        net: The self-tuning network, from the start of training.
        tuner: The `SelfTuner` at work, from the start of training.

    Raises:
        TypeError: A setting is the Trainer's own.
        ValueError: The algorithm is unknown.

    Example:
        >>> class Digits(LightningModule):  # as it was, but for this line
        ...     def __init__(self):
        ...         self.net = self_tuning(Net(), space, start={"dropout": 0.1}, dropout={"head.3": "dropout"})
        >>> Trainer(max_epochs=20, callbacks=[SelfTuningCallback()]).fit(Digits(), train_loader, valid_loader)
    """

    def __init__(
        self,
        algorithm: str = "auto",
        *,
        steps: int | None = None,
        valid: Iterable[Any] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        for name in OF_TRAINER.keys() & settings.keys():
            raise TypeError(f"{name}={settings[name]!r} is the Trainer's own affair: Trainer({OF_TRAINER[name]}=...)")
        self.rule = get_rule(algorithm)
        self.algorithm, self.steps, self.valid, self.loss, self.seed = algorithm, steps, valid, loss, seed
        self.settings = settings
        self.net: SelfTuningModel | None = None
        self.tuner: SelfTuner | None = None
        self._batches: ValidationBatches | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._random: Mapping[str, Any] | None = None
        self._sample = ExitStack()  # what the network reads in the present training step
        self._step: Callable[[], Tensor] | None = None  # the loss of the batch whose step is about to come
        self._pending = self._stepped = False  # whether a step of the network's optimizer is about to come, was done
        self._hook: Any = None

    # Beginning and end ------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the network, before anything else is set up.

        Raises:
            ValueError: The module has no self-tuning network or several; or the loop
                has what the rule cannot follow: several processes, a scaled loss, clipping by value, manual
                optimization without a `loss`.
        """
        if stage != "fit":
            return
        self.net = find_network(pl_module)
        self.net.hyper.to(trainer.strategy.root_device)  # Lightning moves what is in the module, which they need not be
        if trainer.world_size > 1:
            raise ValueError(
                f"the Trainer has {trainer.world_size} processes, whose hyperparameters would part: train with "
                "Trainer(devices=1), and run several seeds side by side"
            )
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and self.rule.response is not None:
            raise ValueError(
                f"precision={trainer.precision!r} scales the training loss, and steps of {self.algorithm!r} beside it "
                "would not be scaled: take 'bf16-mixed' or '32-true', or algorithm='auto'"
            )
        by_value = trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm == "value"
        if by_value and self.rule.trains == ("base",) and self.rule.response is not None:
            raise ValueError(
                f"gradient_clip_algorithm='value' does not reach the response step of {self.algorithm!r}: "
                "clip by 'norm'"
            )
        if not pl_module.automatic_optimization and self.loss is None:
            raise ValueError(
                "training_step steps the optimizers itself (automatic_optimization=False), so it does not give the "
                "loss of a batch alone: say how to get it, SelfTuningCallback(loss=lambda module, batch: ...)"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the tuner; weights, optimizers and loaders are there now.

        Raises:
            ValueError: No optimizer has the network's weights, or several have; the length of the run is unknown, or
                too short for a hyper-step; or there is no validation data.
        """
        assert self.net is not None
        weights = {id(p) for p in self.net.base_parameters()}
        holding = [o for o in trainer.optimizers if weights & {id(p) for g in o.param_groups for p in g["params"]}]
        if len(holding) != 1:
            raise ValueError(
                f"{len(holding)} optimizers of configure_optimizers hold weights of the self-tuning network: make one, "
                "of self.parameters(), after the network was made self-tuning"
            )
        steps = self.steps if self.steps is not None else trainer.estimated_stepping_batches
        if isinstance(steps, float):
            if steps == float("inf"):
                raise ValueError("the Trainer's run has no end: say SelfTuningCallback(steps=...), the steps to expect")
            steps = int(steps)
        norm = trainer.gradient_clip_val
        clip_norm: dict[str, Any] = {} if norm is None else {"clip_norm": float(norm)}
        self.tuner = SelfTuner(
            self.net, holding[0], algorithm=self.algorithm, steps=steps, **self.settings, **clip_norm
        )
        check_steps(self.rule, steps, self.tuner.rule.training.train_steps)
        if self.rule.tunes:
            self._batches = ValidationBatches(self._loader(trainer), seed=self.seed)
        self._hook = holding[0].register_step_post_hook(self._after_optimizer_step)
        if self._loaded is not None:
            self._go_on(self._loaded)
            self._loaded = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the optimizer and the network as they were."""
        self._sample.close()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _loader(self, trainer: pl.Trainer) -> Any:
        if self.valid is not None:
            return shuffled(self.valid)
        found = trainer.val_dataloaders
        if found is None or (isinstance(found, (list, tuple)) and not found):
            raise ValueError(
                "there is no validation data, on which hyperparameters are tuned: give Trainer.fit a val_dataloader, "
                "or SelfTuningCallback(valid=loader)"
            )
        if isinstance(found, (list, tuple, dict)):
            if len(found) > 1:
                raise ValueError(
                    f"there are {len(found)} validation loaders: say which tunes, SelfTuningCallback(valid=loader)"
                )
            (found,) = found.values() if isinstance(found, dict) else found
        return shuffled(found)

    # A training step --------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of the first epoch after a checkpoint: the order of its batches is drawn after this."""
        if self._random is not None:
            self._restore_random()
            fetcher = trainer.fit_loop._data_fetcher
            # Lightning takes the iterator of before, which drew its seed then; any other epoch begins with a new one.
            if getattr(trainer.fit_loop, "is_resuming", False) and fetcher is not None:
                iter(fetcher)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the network the sample that the rule trains with."""
        assert self.net is not None
        assert self.tuner is not None
        self._restore_random()
        self._sample.close()  # of a batch that was skipped
        self._sample.enter_context(self.net.using(self.tuner.training_sample()))
        self._step = partial(self._closure, trainer, pl_module, batch, batch_idx)
        self._stepped = False

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before clipping: what the rule does with the weights as they still are."""
        assert self.tuner is not None
        assert self._step is not None
        if self._tunes_with(optimizer):
            self.tuner.before_step(self._step)
            self._pending = True

    def _after_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Once the weights have moved, and before a learning rate changes; the rule's own steps come here as well."""
        if not self._pending:
            return
        self._pending, self._stepped = False, True
        assert self.tuner is not None
        assert self._step is not None
        self.tuner.after_step(self._step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The hyper-step, where it is time for one."""
        self._sample.close()
        assert self.tuner is not None
        assert self.net is not None
        if self._stepped and self.tuner.hyper_step_due:
            assert self._batches is not None
            valid = to_device(trainer, self._batches.draw())
            self.tuner.hyper_step(partial(self._closure, trainer, pl_module, valid, batch_idx))
            pl_module.log_dict({f"hp/{name}": value for name, value in self.net.hyper.mean_values().items()})

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluation is at the mean, after an epoch that a hook of the module has cut short as well."""
        self._sample.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the network as it was."""
        self._sample.close()

    def _tunes_with(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is the network's optimizer, which Lightning wraps; in manual optimization there may be others."""
        assert self.net is not None
        weights = {id(p) for p in self.net.base_parameters()}
        return any(id(p) in weights for group in optimizer.param_groups for p in group["params"])

    def _closure(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, beside Lightning's own training step."""
        assert self.net is not None
        with beside_training(module, self.net):
            if self.loss is not None:
                with trainer.precision_plugin.train_step_context():
                    return self.loss(module, batch)
            parameters = inspect.signature(module.training_step).parameters.values()
            takes_index = len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
            outputs = trainer.strategy.training_step(batch, *([batch_idx] if takes_index else []))
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"training_step returned {type(loss).__name__}, and the callback needs the loss of a batch: return it, "
                "or give SelfTuningCallback(loss=lambda module, batch: ...)"
            )
        return loss

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        if self.tuner is None:
            return {}
        return {
            "tuner": self.tuner.state_dict(),
            "hyper": self.tuner.net.hyper.state_dict(),
            "validation": None if self._batches is None else self._batches.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._loaded = state_dict or None

    def _go_on(self, state: Mapping[str, Any]) -> None:
        assert self.tuner is not None
        self.tuner.net.hyper.load_state_dict(state["hyper"])
        self.tuner.load_state_dict(copy.deepcopy(state["tuner"]))
        if self._batches is not None:
            self._batches.load_state_dict(state["validation"])
        self._random = state

    def _restore_random(self) -> None:
        """As late as there is a hook for it: before the next epoch draws its order, or before the next step."""
        if self._random is None:
            return
        state, self._random = self._random, None
        torch.set_rng_state(state["random"].cpu())
        if torch.cuda.is_available() and len(state["cuda_random"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda_random"]])


def to_device(trainer: pl.Trainer, batch: Any) -> Any:
    """A validation batch as Lightning gives one to `validation_step`, its transfer hooks included."""
    module = trainer.lightning_module
    before = trainer.state.stage
    trainer.validating = True  # which transfer hooks ask for
    try:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    finally:
        trainer.state.stage = before


@contextmanager
def beside_training(module: pl.LightningModule, net: SelfTuningModel) -> Iterator[None]:
    """Inside the block, the module is in the mode of its network, logs nothing, and counts nothing in its metrics."""
    metrics = [part for part in module.modules() if isinstance(part, Metric)]
    counted = [copy.deepcopy({k: v for k, v in vars(metric).items() if _counts(metric, k)}) for metric in metrics]
    logs = ("log", "log_dict")
    for name in logs:
        vars(module)[name] = _log_nothing
    try:
        with in_mode_of(net, module):
            yield
    finally:
        for name in logs:
            del vars(module)[name]
        for metric, values in zip(metrics, counted, strict=True):
            vars(metric).update(values)


def _counts(metric: Metric, name: str) -> bool:
    return name in metric._defaults or name in ("_update_count", "_computed", "_forward_cache")


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of `log`: values of a step beside training are not those of the step."""
