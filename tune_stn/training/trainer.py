"""The loop shared by all update rules: one training run, an epoch at a time."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tune_stn.data.splits import Splits
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.self_tuning import self_tuning
from tune_stn.space.tunable import Constants, Tunable
from tune_stn.tasks.task import Task
from tune_stn.training.checkpoint import CheckpointError
from tune_stn.training.cost import CostMeter, plain_step_flops
from tune_stn.training.evaluation import evaluate
from tune_stn.training.learner import Learner
from tune_stn.training.response_size import response_size
from tune_stn.training.rules import get_rule
from tune_stn.training.schedule import Schedule
from tune_stn.training.schedule_buffer import ScheduleBuffer
from tune_stn.training.seeds import derive_seed, stream

logger = logging.getLogger(__name__)

# A validation loss of so many times the least so far is finite, but nothing to go back to.
EXPLODING = 10.0
# Share of the weights' learning rate that a restart keeps.
RESTART_LR = 0.5


class Trainer:
    """One training run of a task by one algorithm.

    Args:
        task: what to train.
        algorithm: "fixed", "stn" or "delta-stn".
        hp: hyperparameters: the start values of a self-tuning run, the constants of a fixed one. Those that are not
            named have the task's start value.
        schedule: values that replace those of `hp` as training goes on, of some or all hyperparameters ("fixed" only):
            training step t, counted from 0, or epoch t, is done at `schedule.at(t)`.
        seed: of initial weights, splits, data order and all noise.
        device: where everything lives.
        splits: the task's splits at this seed, if they are loaded already.

    Attributes:
        epoch: completed epochs.
        diverged: why the run cannot go on, or None.
        restarted: why the last epoch was trained anew from the last good one, or None.
        branch: empty, or the name of the streams of data order and noise since the run took over another one's state.
        best_epoch: the one with the least validation loss so far, `best_val_loss`; 0 before the first.
        schedule: the hyperparameters at the start and after each hyper-step, or at each change that was replayed.

    Raises:
        ValueError: unknown algorithm or hyperparameter, a value outside its domain, or a schedule for an algorithm that
            tunes.
    """

    def __init__(
        self,
        task: Task,
        *,
        algorithm: str = "stn",
        hp: Mapping[str, float] | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        splits: Splits | None = None,
    ) -> None:
        self.task = task
        self.rule = get_rule(algorithm)
        self.seed = seed
        self.device = torch.device(device)
        self.hp = task.space.check_values({**task.start, **(hp or {})})
        self.replayed = schedule
        if schedule is not None:
            if self.rule.tunes:
                raise ValueError(f"{algorithm!r} makes a schedule of its own; one is replayed by the algorithm 'fixed'")
            schedule.check(task.space)
        self.splits = (splits or task.data(seed)).to(self.device)
        self.model = self._make_model().to(self.device)
        self.meter = self._make_meter()
        self.learner = Learner(task, self.model)
        self.schedule = ScheduleBuffer()
        self.epoch = 0
        self.step = 0
        if schedule is None:
            self.schedule.record(self.model.hyper, step=0, epoch=0, source="start" if self.rule.tunes else "fixed")
        else:
            self._follow(schedule, epoch_began=True)
        self.device_time_s = 0.0
        self.diverged: str | None = None
        self.restarted: str | None = None
        self.restarts = 0
        self.branch = ""
        self.best_epoch, self.best_val_loss = 0, math.inf
        self._best: dict[str, Tensor] | None = None
        self._since_hyper_step = 0
        self._largest_good_loss = math.inf
        # The state a restart goes back to, None where that is the present one: so a checkpoint rarely holds two.
        self._last_good: dict[str, Any] | None = None

    def run_epoch(self) -> dict[str, float]:
        """Train to the end of the next epoch and evaluate: the report, with the same keys every time.

        An epoch that diverges is trained anew, from the end of the last good one, if the training allows a restart.
        What it had cost stays spent.

        Keys: `epoch`, `step` (training steps), `cost` (plain-epoch equivalents), `train_loss` (mean over the epoch's
        steps, regularised), `val_loss`, `test_loss`, `val_<metric>`, `test_<metric>`, `hp/<name>`, `scale/<name>`
        (0 where nothing is tuned) and `device_time_s` (training steps alone, no evaluation). A diverged run reports
        an infinite `val_loss` and says why in `diverged`.
        """
        target, self.restarted = self.epoch + 1, None
        while self.epoch < target:
            # The present state is good unless it was kept back; it must be copied, for training writes into it.
            good = self._last_good or copy.deepcopy(self._progress()) if self._may_restart else None
            train_loss, report = self._run_epoch()
            reason = self._why_diverged(train_loss, report["val_loss"])
            if reason and good is not None:
                self._restart(good, reason)
            elif reason:
                self.diverged = reason
                report["val_loss"] = math.inf
                break
            else:
                self._largest_good_loss = min(self._largest_good_loss, EXPLODING * abs(report["val_loss"]))
                self._last_good = good if report["val_loss"] > self._largest_good_loss else None
                self._note_best(report["val_loss"])
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

    @property
    def finished(self) -> str:
        """Why the run is over, or empty: its epochs are done, it diverged, or it ran out of patience."""
        training = self.task.training
        if self.diverged is not None:
            return self.diverged
        if training.patience is not None and self.epoch - self.best_epoch >= training.patience:
            return f"no better validation loss in {training.patience} epochs than that of epoch {self.best_epoch}"
        return f"{training.epochs} epochs are done" if self.epoch >= training.epochs else ""

    def restore_best(self) -> dict[str, float]:
        """Take weights, responses, hyperparameters and scales back to the end of the best epoch, all of them together.

        Optimizers and counters stay; the state is one to evaluate or keep, not to train on.

        Returns:
            Losses and metrics on the validation and the test split, evaluated anew.

        Raises:
            RuntimeError: nothing was kept: the training has not `keep_best`, or no epoch was good.
        """
        if self._best is None:
            reason = "no epoch was good" if self.task.training.keep_best else "its training has keep_best=False"
            raise RuntimeError(f"the run of {self.task.name!r} has no best state to go back to: {reason}")
        self.model.load_state_dict(self._best)
        return self._evaluate()

    def _note_best(self, val_loss: float) -> None:
        if val_loss < self.best_val_loss:
            self.best_epoch, self.best_val_loss = self.epoch, val_loss
            if self.task.training.keep_best:
                self._best = {name: value.clone() for name, value in self.model.state_dict().items()}

    def _run_epoch(self) -> tuple[float, dict[str, float]]:
        """Train one epoch; mean training loss, and losses and metrics on the other splits."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(self.seed, self._purpose("noise", self.restarts), self.epoch))
            began = time.perf_counter()
            with self._slowed_down():
                train_loss = float(self._train())
            self.device_time_s += time.perf_counter() - began
            self.epoch += 1
            report = self._evaluate()
            for schedule in self.learner.lr_schedules.values():
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(report["val_loss"])
                else:
                    schedule.step()
        return train_loss, report

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit at the end of an epoch; tensors and plain values only.

        Random streams and data order follow from seed and epoch (`training.seeds`).
        """
        return {
            "task": self.task.name,
            "algorithm": self.rule.name,
            "seed": self.seed,
            "cost": self.meter.state_dict(),
            "device_time_s": self.device_time_s,
            "diverged": self.diverged,
            "restarts": self.restarts,
            "branch": self.branch,
            "largest_good_loss": self._largest_good_loss,
            "last_good": self._last_good,
            "best_epoch": self.best_epoch,
            "best_val_loss": self.best_val_loss,
            "best": self._best,
            "hp": self.hp,
            "schedule": self.schedule.state_dict(),
            **self._progress(),
        }

    def _progress(self) -> dict[str, Any]:
        """What a restart takes back: everything learned, and how far it went."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "since_hyper_step": self._since_hyper_step,
            "records": len(self.schedule.steps),
            "model": self.model.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.learner.optimizers.items()},
            "lr_schedules": {name: s.state_dict() for name, s in self.learner.lr_schedules.items()},
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
        stays = not self.rule.tunes and self.replayed is None
        constants = {k: v.clone() for k, v in self.model.hyper.state_dict().items()} if stays else {}
        try:
            self._load_progress(state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
            raise CheckpointError(f"the checkpoint does not fit the model of {self.task.name!r}: {reason}") from error
        copied = {name: value.clone() for name, value in self.model.hyper.state_dict().items()}
        self.model.hyper.load_state_dict({**copied, **constants})
        self.meter.load_state_dict(state["cost"])
        self.device_time_s = state["device_time_s"]
        self.diverged, self.restarts, self.branch = state["diverged"], state["restarts"], state["branch"]
        self._largest_good_loss, self._last_good = state["largest_good_loss"], state["last_good"]
        self.best_epoch, self.best_val_loss, self._best = state["best_epoch"], state["best_val_loss"], state["best"]
        self.schedule.load_state_dict(state["schedule"], device=self.device)
        if any(not torch.equal(value, copied[name]) for name, value in constants.items()):
            self.schedule.record(self.model.hyper, step=self.step, epoch=self.epoch, source="explore")

    def take_over(
        self, state: Mapping[str, Any], own: Mapping[str, Any], *, cost: float, branch: str, widen: float
    ) -> None:
        """Go on from the state of another run: its weights, responses, hyperparameters, optimizers and epoch.

        Its perturbation scales are widened for the gradient to explore, and data order and noise are those of `branch`,
        so that no two runs from one state are the same. What this run has spent stays its own; so does its schedule,
        which goes on with a record of source "exploit".

        Args:
            state: of the other run.
            own: of this run until now.
            cost: what this run has spent, in plain-epoch equivalents.
            branch: a name that no other run from the same state has.
            widen: factor of the scales; none gets wider than its start value by it.

        Raises:
            CheckpointError: as from `load_state_dict`.
            ValueError: nothing is tuned inside this run.
        """
        hyper = self.model.hyper
        if not isinstance(hyper, Tunable):
            raise ValueError(
                f"a run of {self.rule.name!r} cannot take over another one's hyperparameters: it tunes none"
            )
        self.load_state_dict({**state, "schedule": own["schedule"], "device_time_s": own["device_time_s"]})
        self.meter.spent_flops = round(cost * self.meter.epoch_flops)
        self.branch = branch
        self._last_good = None  # it names records of the other schedule
        hyper.widen(widen)
        self.schedule.record(hyper, step=self.step, epoch=self.epoch, source="exploit")

    def _load_progress(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.learner.optimizers.items():
            # Torch keeps the tensors it is given: without a copy, two runs would share their momentum.
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))
        for name, schedule in self.learner.lr_schedules.items():
            schedule.load_state_dict(state["lr_schedules"][name])
        self.epoch, self.step = state["epoch"], state["step"]
        self._since_hyper_step = state["since_hyper_step"]

    @property
    def _may_restart(self) -> bool:
        return self.restarts < self.task.training.restarts

    def _restart(self, good: Mapping[str, Any], reason: str) -> None:
        """Go back to a good state, and on from there more carefully, or the same would happen again."""
        self._load_progress(good)
        self._last_good = None
        self.schedule.truncate(good["records"])
        for optimizer in self.learner.optimizers.values():
            optimizer.state.clear()
        self.restarts += 1
        self.restarted = (
            f"{reason}; went back to the end of epoch {self.epoch}, with {RESTART_LR:g} of the learning rate"
        )
        logger.warning("%s, seed %d: %s", self.task.name, self.seed, self.restarted)

    @contextmanager
    def _slowed_down(self) -> Iterator[None]:
        """Inside the block, the weights learn at the rates of their schedule times `RESTART_LR` for each restart.

        Outside, schedules find the rates as they left them: many go on from those, each in its own way.
        """
        groups = [g for name, o in self.learner.optimizers.items() if name != "hyper" for g in o.param_groups]
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * RESTART_LR**self.restarts
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _purpose(self, name: str, restarts: int = 0) -> str:
        """Name of a random stream: another one in each branch, and after each restart where they count."""
        return " ".join(str(part) for part in (name, self.branch, restarts) if part)

    def _make_model(self) -> SelfTuningModel:
        """The network with the seed's base weights, whatever the algorithm; responses have a stream of their own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "weights"))
            network = self.task.model()
        response, why = response_size(self.task, self.rule)
        return self_tuning(
            network,
            self.task.space,
            start=self.hp,
            dropout=self.task.dropout,
            weight_dropout=self.task.weight_dropout,
            response=response,
            norms=self.task.norms,
            why=why,
            scale=self.task.training.scale,
            tuned=self.rule.tunes,
            centred=self.rule.centred,
            seed=derive_seed(self.seed, "response"),
        )

    def _make_meter(self) -> CostMeter:
        train, size = self.splits.train, self.task.training.batch_size
        batch = next(train.batches(size, torch.Generator()))
        flops = plain_step_flops(self.task, self.model, batch) * train.steps(size)
        return CostMeter(flops, compiled=self.task.training.compile)

    def _train(self) -> Tensor:
        """One pass over the training split; gives the mean training loss."""
        training, train = self.task.training, self.splits.train
        validation = self.splits.valid.cycle(
            training.batch_size, stream(self.seed, self._purpose("validation order"), self.epoch)
        )
        self.model.train()
        total = torch.zeros((), device=self.device)
        steps = 0
        order = stream(self.seed, self._purpose("order"), self.epoch)
        for batch in train.batches(training.batch_size, order):
            if self.replayed is not None:
                self._follow(self.replayed, epoch_began=steps == 0)
            total += self.rule.train_step(self.learner, batch, self.meter)
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

    def _follow(self, schedule: Schedule, *, epoch_began: bool) -> None:
        """Set what a schedule says for the training step to come, and record it if that is new.

        A record has the epoch of the step before it, as one has that follows a hyper-step: so the records of a replayed
        STN run are those of that run.
        """

        def values(step: int, epoch: int) -> list[float]:
            given = self.hp | schedule.at(step if schedule.unit == "step" else epoch)
            # Between two values of an integer, an interpolation is none.
            return [domain.nearest(given[name]) for name, domain in self.task.space.items()]

        hyper = self.model.hyper
        assert isinstance(hyper, Constants)
        now = values(self.step, self.epoch)
        hyper.value.copy_(torch.tensor(now))
        before = self.epoch - (epoch_began and self.epoch > 0)
        if not self.schedule.steps or (self.step > 0 and now != values(self.step - 1, before)):
            self.schedule.record(hyper, step=self.step, epoch=before, source="replay")

    def _evaluate(self) -> dict[str, float]:
        return evaluate(self.learner, self.splits)

    def _why_diverged(self, train_loss: float, val_loss: float) -> str:
        """What is not finite any more; empty where all is well."""
        losses = (("training", train_loss), ("validation", val_loss))
        reasons = [
            f"the {label} loss became {loss} in epoch {self.epoch}" for label, loss in losses if not math.isfinite(loss)
        ]
        lost = [name for name, value in self.model.hyper.mean_values().items() if not math.isfinite(value)]
        if lost:
            reasons.append(f"not finite any more: {', '.join(lost)}")
        return "; ".join(reasons)
