"""The loop shared by all update rules: one training run, an epoch at a time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tune_stn.data.batches import cycled_batches, epoch_batches, steps_per_epoch
from tune_stn.data.splits import Split, Splits
from tune_stn.nn.self_tuning import SelfTuningModel, self_tuning
from tune_stn.space.tunable import Tunable
from tune_stn.tasks.task import Task
from tune_stn.training.checkpoint import CheckpointError
from tune_stn.training.cost import CostMeter, plain_step_flops
from tune_stn.training.learner import Learner
from tune_stn.training.rules import get_rule
from tune_stn.training.schedule import ScheduleBuffer
from tune_stn.training.seeds import derive_seed, stream


class Trainer:
    """One training run of a task by one algorithm.

    Args:
        task: what to train.
        algorithm: "fixed", "stn" or "delta-stn".
        hp: hyperparameters: the start values of a self-tuning run, the constants of a fixed one. Those that are not
            named have the task's start value.
        seed: of initial weights, splits, data order and all noise.
        device: where everything lives.
        splits: the task's splits at this seed, if they are loaded already.

    Attributes:
        epoch: completed epochs.
        diverged: why the run cannot go on, or None.
        schedule: the hyperparameters at the start and after each hyper-step.

    Raises:
        ValueError: unknown algorithm or hyperparameter, or a value outside its domain.
    """

    def __init__(
        self,
        task: Task,
        *,
        algorithm: str = "stn",
        hp: Mapping[str, float] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        splits: Splits | None = None,
    ) -> None:
        self.task = task
        self.rule = get_rule(algorithm)
        self.seed = seed
        self.device = torch.device(device)
        self.hp = task.space.check_values({**task.start, **(hp or {})})
        self.splits = (splits or task.data(seed)).to(self.device)
        self.model = self._make_model().to(self.device)
        self.learner = Learner(task, self.model)
        self.meter = self._make_meter()
        self.schedule = ScheduleBuffer()
        self.schedule.record(self.model.hyper, step=0, epoch=0, source="start" if self.rule.tunes else "fixed")
        self.epoch = 0
        self.step = 0
        self.device_time_s = 0.0
        self.diverged: str | None = None
        self._since_hyper_step = 0

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch and evaluate: the report, with the same keys every time.

        Keys: `epoch`, `step` (training steps), `cost` (plain-epoch equivalents), `train_loss` (mean over the epoch's
        steps, regularised), `val_loss`, `test_loss`, `val_<metric>`, `test_<metric>`, `hp/<name>`, `scale/<name>`
        (0 where nothing is tuned) and `device_time_s` (training steps alone, no evaluation). A diverged run reports
        an infinite `val_loss` and says why in `diverged`.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(self.seed, "noise", self.epoch))
            began = time.perf_counter()
            train_loss = float(self._train())
            self.device_time_s += time.perf_counter() - began
            self.epoch += 1
            report = self._evaluate()
            for schedule in self.learner.lr_schedules.values():
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(report["val_loss"])
                else:
                    schedule.step()
        self._look_for_divergence(train_loss, report["val_loss"])
        if self.diverged:
            report["val_loss"] = math.inf
        values = self.model.hyper.mean_values()
        hyper = self.model.hyper
        scales = hyper.scale().tolist() if isinstance(hyper, Tunable) else [0.0] * len(values)
        return {
            "epoch": self.epoch,
            "step": self.step,
            "cost": self.meter.cost,
            "train_loss": train_loss,
            **report,
            **{f"hp/{name}": value for name, value in values.items()},
            **{f"scale/{name}": scale for name, scale in zip(values, scales, strict=True)},
            "device_time_s": self.device_time_s,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit at the end of an epoch; tensors and plain values only.

        Random streams and data order follow from seed and epoch (`training.seeds`).
        """
        return {
            "task": self.task.name,
            "algorithm": self.rule.name,
            "seed": self.seed,
            "epoch": self.epoch,
            "step": self.step,
            "since_hyper_step": self._since_hyper_step,
            "cost": self.meter.state_dict(),
            "device_time_s": self.device_time_s,
            "diverged": self.diverged,
            "hp": self.hp,
            "model": self.model.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.learner.optimizers.items()},
            "lr_schedules": {name: s.state_dict() for name, s in self.learner.lr_schedules.items()},
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Where nothing is tuned inside the run, the hyperparameters stay those given at construction: a population
        method that copies a checkpoint has already decided on new ones.

        Raises:
            CheckpointError: the state is of another task or algorithm, or does not fit the model.
        """
        for key, mine in (("task", self.task.name), ("algorithm", self.rule.name)):
            if state.get(key) != mine:
                raise CheckpointError(f"the checkpoint is of {key} {state.get(key)!r}, this run of {mine!r}")
        # Loading writes into the very tensors that state_dict gives, so what is to stay must be copied.
        constants = {} if self.rule.tunes else {k: v.clone() for k, v in self.model.hyper.state_dict().items()}
        try:
            self.model.load_state_dict(state["model"])
            for name, optimizer in self.learner.optimizers.items():
                # Torch keeps the tensors it is given: without a copy, two runs would share their momentum.
                optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))
            for name, schedule in self.learner.lr_schedules.items():
                schedule.load_state_dict(state["lr_schedules"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
            raise CheckpointError(f"the checkpoint does not fit the model of {self.task.name!r}: {reason}") from error
        self.model.hyper.load_state_dict({**self.model.hyper.state_dict(), **constants})
        self.epoch, self.step = state["epoch"], state["step"]
        self._since_hyper_step = state["since_hyper_step"]
        self.meter.load_state_dict(state["cost"])
        self.device_time_s = state["device_time_s"]
        self.diverged = state["diverged"]
        self.schedule.load_state_dict(state["schedule"], device=self.device)

    def _make_model(self) -> SelfTuningModel:
        """The network with the seed's base weights, whatever the algorithm; responses have a stream of their own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "weights"))
            network = self.task.model()
        chosen = self.task.training.response
        response = self.rule.response if chosen == "auto" else chosen
        return self_tuning(
            network,
            self.task.space,
            start=self.hp,
            dropout=self.task.dropout,
            response=response if self.rule.tunes else None,
            scale=self.task.training.scale,
            tuned=self.rule.tunes,
            centred=self.rule.centred,
            seed=derive_seed(self.seed, "response"),
        )

    def _make_meter(self) -> CostMeter:
        size = min(self.task.training.batch_size, len(self.splits.train))
        batch = self.splits.train.take(torch.arange(size))
        steps = steps_per_epoch(len(self.splits.train), self.task.training.batch_size)
        return CostMeter(plain_step_flops(self.task, self.model, batch) * steps)

    def _train(self) -> Tensor:
        """One pass over the training split; gives the mean training loss."""
        training, train = self.task.training, self.splits.train
        validation = self._validation_batches()
        self.model.train()
        total = torch.zeros((), device=self.device)
        steps = 0
        for indices in epoch_batches(len(train), training.batch_size, stream(self.seed, "order", self.epoch)):
            total += self.rule.train_step(self.learner, train.take(indices), self.meter)
            self.step += 1
            steps += 1
            if self.rule.tunes and self.epoch >= training.warmup_epochs:
                self._since_hyper_step += 1
                if self._since_hyper_step == training.train_steps:
                    self._since_hyper_step = 0
                    for _ in range(training.valid_steps):
                        with self.meter.step("hyper"):
                            self.learner.hyper_step(next(validation))
                    self.schedule.record(self.model.hyper, step=self.step, epoch=self.epoch, source="stn")
        return total / steps

    def _validation_batches(self) -> Iterator[Split]:
        valid = self.splits.valid
        order = stream(self.seed, "validation order", self.epoch)
        for indices in cycled_batches(len(valid), self.task.training.batch_size, order):
            yield valid.take(indices)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Validation and test loss and metrics at the mean hyperparameters, over whole splits."""
        self.model.eval()
        report: dict[str, float] = {}
        functions = {"loss": self.task.loss, **self.task.metrics}
        sample = self.model.mean_sample()
        for prefix, split in (("val", self.splits.valid), ("test", self.splits.test)):
            totals = dict.fromkeys(functions, 0.0)
            for part in torch.split(torch.arange(len(split)), self.task.training.eval_batch_size):
                batch = split.take(part)
                outputs = self.learner.forward(batch.inputs, sample)
                for name, function in functions.items():
                    totals[name] += float(function(outputs, batch.targets)) * len(batch)
            report |= {f"{prefix}_{name}": total / len(split) for name, total in totals.items()}
        return report

    def _look_for_divergence(self, train_loss: float, val_loss: float) -> None:
        losses = (("training", train_loss), ("validation", val_loss))
        reasons = [
            f"the {label} loss became {loss} in epoch {self.epoch}" for label, loss in losses if not math.isfinite(loss)
        ]
        lost = [name for name, value in self.model.hyper.mean_values().items() if not math.isfinite(value)]
        if lost:
            reasons.append(f"not finite any more: {', '.join(lost)}")
        if reasons:
            self.diverged = "; ".join(reasons)
