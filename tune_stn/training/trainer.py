"""The loop shared by all update rules: one training run, an epoch at a time."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tune_stn.data.splits import Splits
from tune_stn.nn.penalties import OptimizerWeightDecay
from tune_stn.space.tunable import Constants, Tunable
from tune_stn.tasks.arguments import check_splits
from tune_stn.tasks.task import Task
from tune_stn.training.best import BestEpoch
from tune_stn.training.checkpoint import CheckpointError, taken_over
from tune_stn.training.cost import CostMeter, make_meter
from tune_stn.training.divergence import Restarts, why_diverged
from tune_stn.training.evaluation import evaluate, hyper_report
from tune_stn.training.forward import Forward
from tune_stn.training.network import make_network
from tune_stn.training.objectives import bare_loss, training_loss, validation_loss
from tune_stn.training.optimizer_decay import check_held
from tune_stn.training.reading import check_read, warn_of_draws
from tune_stn.training.replay import Replay
from tune_stn.training.rules import Tools, get_rule
from tune_stn.training.schedule import Schedule
from tune_stn.training.schedule_buffer import ScheduleBuffer
from tune_stn.training.seeds import derive_seed, own_draws, stream
from tune_stn.training.self_tuner import SelfTuner
from tune_stn.training.stepper import make_stepper

logger = logging.getLogger(__name__)


class Trainer:
    """One training run of a task by one algorithm.

    Args:
        task: The task to train.
        algorithm: Name of an update rule: "auto", "stn", "delta-stn", "progress-ratio" or "fixed".
        hp: Name -> value of hyperparameters: the start values of a self-tuning run, the constants of a fixed one. Those
            that are not named have the task's start value.
        schedule: Values that replace those of `hp` as training goes on, of some or all hyperparameters ("fixed" only):
            training step t, counted from 0, or epoch t, is done at `schedule.at(t)`. Default None.
        seed: Seed of initial weights, splits, data order and all noise.
        device: Device of the network, the data and all states.
        splits: The task's splits at this seed, if they are loaded already. Default None: they are loaded.
        like: Another run of the same task on the same splits. What it has found out of them is not sought again: the
            cost of each kind of step, whether each hyperparameter has an effect on training, and whether the network
            draws at random in evaluation. Default None.

    Attributes:
        epoch: Number of completed epochs.
        diverged: Reason why the run cannot go on, or None.
        restarted: Reason why the last epoch was trained anew from the last good one, or None.
        branch: Name of the streams of data order and noise since the run took over another one's state, "" before it
            did.
        schedule: The hyperparameters at the start and after each hyper-step, or at each change that was replayed.

    Raises:
        ValueError: unknown algorithm or hyperparameter, a value outside its domain, a hyperparameter that nothing reads
            in a training step, a schedule for an algorithm that tunes, or an optimizer's own weight decay for one with
            a response.
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
        like: Trainer | None = None,
    ) -> None:
        rule = get_rule(algorithm)
        self.task = task
        self.seed = seed
        self.device = torch.device(device)
        self.hp = task.space.check_values({**task.start, **(hp or {})})
        if schedule is not None:
            if rule.tunes:
                raise ValueError(f"{algorithm!r} makes a schedule of its own; one is replayed by the algorithm 'fixed'")
            schedule.check(task.space)
        if rule.response is not None:
            check_held(task.penalties, task.space, algorithm=algorithm)
        self.splits = check_splits(task.name, task.data(seed) if splits is None else splits).to(self.device)
        some = next(self.splits.train.batches(task.training.batch_size, torch.Generator()))
        self.model = make_network(task, rule, start=self.hp, seed=seed, batch=some).to(self.device)
        self.forward = Forward(task, self.model)
        check_read(task, self.forward, some, effects=like is None)
        if like is None:
            warn_of_draws(task, self.forward, some)
        self.meter: CostMeter = make_meter(task, self.model, self.splits.train) if like is None else like.meter
        steps_per_epoch = self.splits.train.steps(task.training.batch_size)
        self.stepper = make_stepper(
            self.model,
            task.training,
            hyper_steps=task.training.hyper_steps(steps_per_epoch),
            decays=[penalty for penalty in task.penalties if isinstance(penalty, OptimizerWeightDecay)],
        )
        if task.training.cuda_graphs and self.device.type == "cuda":
            self.record_steps()
        self.tuner = SelfTuner.of_batches(
            rule,
            Tools(
                model=self.model,
                training_loss=partial(training_loss, self.forward),
                validation_loss=partial(validation_loss, self.forward),
                bare_loss=partial(bare_loss, self.forward),
                steps=task.training.epochs * steps_per_epoch,
                stepper=self.stepper,
                training=task.training,
                meter=self.meter,
            ),
        )
        self.rule = self.tuner.rule
        self.schedule = ScheduleBuffer()
        self.replay: Replay | None = None
        if schedule is None:
            self.schedule.record(self.model.hyper, step=0, epoch=0, source="start" if rule.tunes else "fixed")
        else:
            assert isinstance(self.model.hyper, Constants)
            self.replay = Replay(schedule, self.model.hyper, values=self.hp, records=self.schedule)
            self.replay.follow(0, 0, epoch_began=True)
        self.epoch = 0
        self.device_time_s = 0.0
        self.diverged: str | None = None
        self.restarted: str | None = None
        self.branch = ""
        self._best = BestEpoch(keep=task.training.keep_best)
        self._restarts = Restarts(task.training.restarts)

    def record_steps(self) -> None:
        """From now on replay what can be as CUDA graphs: losses and gradients of whole steps; or, where a network
        carries a state from batch to batch, the loops of its LSTMs over time.
        """
        self.stepper.record()
        self.forward.record_loops()

    @property
    def step(self) -> int:
        """Completed training steps."""
        return self.tuner.steps_done

    @property
    def restarts(self) -> int:
        """How often the run went back to its last good epoch."""
        return self._restarts.done

    @property
    def best_epoch(self) -> int:
        """The epoch with the least validation loss so far; 0 before the first."""
        return self._best.epoch

    @property
    def best_val_loss(self) -> float:
        """The least validation loss so far."""
        return self._best.val_loss

    def run_epoch(self) -> dict[str, float]:
        """Train to the end of the next epoch and evaluate: the report, with the same keys every time.

        An epoch that diverges is trained anew, from the end of the last good one, if the training allows a restart.
        What it had cost stays spent.

        Keys: `epoch`, `step` (training steps), `cost` (plain-epoch equivalents), `train_loss` (mean over the epoch's
        steps, regularised), `val_loss`, `test_loss`, `val_<metric>`, `test_<metric>`, `hp/<name>`, `scale/<name>`
        (0 where nothing is tuned) and `device_time_s` (training steps alone, no evaluation). A diverged run reports
        an infinite `val_loss` and says why in `diverged`. The test split is evaluated where the validation loss is less
        than in any report before, where the run is over, and every `test_every` epochs; in between, `test_loss` and
        `test_<metric>` are NaN.
        """
        with own_draws(self.device):
            return self._report_of_next_epoch()

    def _report_of_next_epoch(self) -> dict[str, float]:
        target, self.restarted = self.epoch + 1, None
        while self.epoch < target:
            before = self._restarts.state_before(self._progress)
            train_loss, report = self._run_epoch()
            values = self.model.hyper.mean_values()
            reason = why_diverged(epoch=self.epoch, train_loss=train_loss, val_loss=report["val_loss"], values=values)
            if not reason:
                reason = self._restarts.went_well(before, report["val_loss"], epoch=self.epoch)
            if not reason:
                self._best.note(self.epoch, report["val_loss"], self.model)
            elif before is not None:
                self._go_back(before, reason)
            else:
                self.diverged = reason
                report["val_loss"] = math.inf
                break
        if self._best.is_reported(report["val_loss"]) or self.finished or self._test_is_due:
            report |= self._evaluate("test")
        else:
            report |= dict.fromkeys(("test_loss", *(f"test_{name}" for name in self.task.metrics)), math.nan)
        return {
            "epoch": self.epoch,
            "step": self.step,
            "cost": self.meter.cost,
            "train_loss": train_loss,
            **report,
            **hyper_report(self.model.hyper),
            "device_time_s": self.device_time_s,
        }

    @property
    def _test_is_due(self) -> bool:
        """Whether the test split is evaluated now, whatever the validation loss."""
        every = self.task.training.test_every
        return every > 0 and self.epoch % every == 0

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
        if self._best.model is None:
            reason = "no epoch was good" if self.task.training.keep_best else "its training has keep_best=False"
            raise RuntimeError(f"the run of {self.task.name!r} has no best state to go back to: {reason}")
        self.model.load_state_dict(self._best.model)
        return self._evaluate("val", "test")

    def _run_epoch(self) -> tuple[float, dict[str, float]]:
        """Train one epoch; mean training loss, and loss and metrics on the validation split."""
        torch.manual_seed(derive_seed(self.seed, self._purpose("noise", self.restarts), self.epoch))
        began = time.perf_counter()
        with self.stepper.slowed(self._restarts.lr_factor):
            train_loss = float(self._train())
        self.device_time_s += time.perf_counter() - began
        self.epoch += 1
        report = self._evaluate("val")
        self.stepper.step_lr_schedules(report["val_loss"])
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
            "branch": self.branch,
            **self._restarts.state_dict(),
            **self._best.state_dict(),
            "hp": self.hp,
            "schedule": self.schedule.state_dict(),
            **self._progress(),
        }

    def _progress(self) -> dict[str, Any]:
        """What a restart takes back: everything learned, and how far it went."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "since_hyper_step": self.tuner.since_hyper_step,
            "records": len(self.schedule.steps),
            "model": self.model.state_dict(),
            "rule": self.rule.state_dict(),
            **self.stepper.state_dict(),
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
        stays = not self.rule.tunes and self.replay is None
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
        self.diverged, self.branch = state["diverged"], state["branch"]
        self._restarts.load_state_dict(state)
        self._best.load_state_dict(state)
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
            state: State of the other run.
            own: State of this run until now.
            cost: What this run has spent, in plain-epoch equivalents.
            branch: A name that no other run from the same state has.
            widen: Factor of the scales; none gets wider than its start value times this.

        Raises:
            CheckpointError: as from `load_state_dict`.
            ValueError: nothing is tuned inside this run.
        """
        hyper = self.model.hyper
        if not isinstance(hyper, Tunable):
            raise ValueError(
                f"a run of {self.rule.name!r} cannot take over another one's hyperparameters: it tunes none"
            )
        spent_flops = round(cost * self.meter.epoch_flops)
        self.load_state_dict(taken_over(state, own, spent_flops=spent_flops, branch=branch))
        hyper.widen(widen)
        self.schedule.record(hyper, step=self.step, epoch=self.epoch, source="exploit")

    def _load_progress(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.stepper.load_state_dict(state)
        # A rule may keep the tensors it is given: without a copy, two runs would share them.
        self.rule.load_state_dict(copy.deepcopy(state["rule"]))
        self.epoch, self.tuner.steps_done = state["epoch"], state["step"]
        self.tuner.since_hyper_step = state["since_hyper_step"]

    def _go_back(self, before: Mapping[str, Any], reason: str) -> None:
        """Go back to a good state, and on from there more carefully, or the same would happen again."""
        self._load_progress(before)
        self.schedule.truncate(before["records"])
        self.stepper.forget()
        self.restarted = self._restarts.went_back(reason, self.epoch)
        logger.warning("%s, seed %d: %s", self.task.name, self.seed, self.restarted)

    def _purpose(self, name: str, restarts: int = 0) -> str:
        """Name of a random stream: another one in each branch, and after each restart where they count."""
        return " ".join(str(part) for part in (name, self.branch, restarts) if part)

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
            if self.replay is not None:
                self.replay.follow(self.step, self.epoch, epoch_began=steps == 0)
            total += self.tuner.train_step(batch)
            steps += 1
            if self.epoch < training.warmup_epochs:
                self.tuner.since_hyper_step = 0  # they are counted from the end of the warm-up
            elif self.tuner.hyper_step_due:
                for _ in range(training.valid_steps):
                    if self.rule.due:
                        self.tuner.hyper_step(next(validation))
                self.schedule.record(self.model.hyper, step=self.step, epoch=self.epoch, source="stn")
        return total / steps

    def _evaluate(self, *splits: Literal["val", "test"]) -> dict[str, float]:
        return evaluate(self.forward, self.splits, splits)
