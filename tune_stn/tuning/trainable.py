"""One training run as a Ray Tune trial."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from tune_stn.data.splits import Splits
from tune_stn.tasks.registry import get_task
from tune_stn.tasks.task import Task
from tune_stn.training.checkpoint import STATE_FILE, CheckpointError, load_state, save_state
from tune_stn.training.schedule import Schedule
from tune_stn.training.schedule_buffer import SCHEDULE_FILE, write_schedule
from tune_stn.training.seeds import derive_seed
from tune_stn.training.trainer import Trainer
from tune_stn.tuning.checkpoints import existing, older, refuse_pickle
from tune_stn.tuning.device import claim, peak_memory
from tune_stn.tuning.shared_task import SharedTask, share_in, sharing

logger = logging.getLogger(__name__)

# Where in a trial's config `STNScheduler` writes what a comparison of the population came to.
POPULATION = "population"
# Where the method PB2 keeps a trial's place in the scales of the domains.
COORDINATES = "coordinates"
# After how many epochs a trial of a study asks for a checkpoint, if the last one is `CHECKPOINT_S` ago.
CHECKPOINT_EPOCHS = "checkpoint_epochs"
CHECKPOINT_S = 10.0
# Everything else in a trial's config is a setting of the task or of its training.
OWN_KEYS = ("task", "algorithm", "hp", "schedule", "seed", POPULATION, COORDINATES, CHECKPOINT_EPOCHS)


class STNTrainable(tune.Trainable):
    """A trial that trains a task by one algorithm, an epoch a step, and reports its hyperparameters as it goes.

    Config:
        task: a built-in task's name, `module:attribute`, or a `Task`. One that is larger than 1 MB, with data in its
            functions, is stored once in Ray's object store and not in results and saved states, so `Tuner.restore`
            needs it again: by `param_space`, or in a run of `tune.with_parameters(STNTrainable, task=task)` by that.
        algorithm: "stn" (default), "delta-stn" or "fixed".
        hp: start values by hyperparameter (the constants of "fixed"); absent ones take the task's start values.
        schedule: values that "fixed" is to replay, exactly, at every step: a `Schedule`, or the path or URI of its
            Parquet file as the worker sees it. What it does not name is as `hp` says.
        seed: default 0.
        checkpoint_epochs: after how many epochs a report asks Tune for a checkpoint, if the last one is ten seconds
            ago; default none, so that it is as `CheckpointConfig` says.
        anything else: a setting of the task (`train_images`) or of its training (`lr`, `epochs`); so a Tune searcher
            tunes from outside what the gradient cannot.

    Each result has the keys of `Trainer.run_epoch` (those of the test split are NaN where it was not evaluated), and
    `best_val_loss`, `cost_increment` and `device_time_increment_s` (spent in this step), `peak_memory_bytes`
    (`device.peak_memory`), `status` ("running", "finished", "diverged") with `reason`, `parent_trial_id` and `segment`
    (which tell a trial's continuation from a copy of another trial). The trial ends itself after the task's epochs, or
    when it diverges.

    The current directory is the one in which Ray's processes were started, not Tune's folder of the trial: on a local
    Ray, relative paths of a task (`data_dir`) mean the same as in the script that starts it.

    Runs on the GPU that Tune gave it (of a part of one, on that part of its memory), else on as many CPU threads as it
    was given CPUs.

    Example:
        >>> tune.run(STNTrainable, config={"task": "digits-mlp", "algorithm": "stn"}, stop={"epoch": 5})
    """

    def __init_subclass__(cls, **more: Any) -> None:
        """Of a subclass, such as `tune.with_resources` makes: its own request for resources shares the task too."""
        super().__init_subclass__(**more)
        if isinstance(request := vars(cls).get("default_resource_request"), classmethod):
            cls.default_resource_request = sharing(request.__func__)  # type: ignore[method-assign, assignment]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> None:
        """Nothing special. Tune calls this with each new trial's config on the driver: a large task is shared here."""
        share_in(config)

    def setup(self, config: dict[str, Any], task: Task | SharedTask | None = None) -> None:
        """As Tune calls it.

        Args:
            config: The trial's config; the class says what it holds.
            task: The task from `tune.with_parameters(STNTrainable, task=task)`. Default the config's.
        """
        # Tune moves a trial to a folder of its own, where a relative path of the user's would lead astray.
        os.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", "."))
        settings = {key: value for key, value in config.items() if key not in OWN_KEYS}
        seed = config.get("seed", 0)
        task = config.get("task") if task is None else task
        if task is None:
            raise ValueError("config has no 'task': give a built-in name, module:attribute, or a Task")
        torch.set_num_threads(max(1, int(self._given("CPU", 1))))
        device = claim(self._given("GPU", 1) if ray.is_initialized() and ray.get_gpu_ids() else 0)
        self._data: tuple[Any, Splits] | None = getattr(self, "_data", None)
        key = (task, seed, settings)
        cached = self._data[1] if self._data is not None and self._data[0] == key else None
        self.trainer = Trainer(
            get_task(task.fetch() if isinstance(task, SharedTask) else task, **settings),
            algorithm=config.get("algorithm", "stn"),
            hp=config.get("hp"),
            schedule=_schedule(config.get("schedule")),
            seed=seed,
            device=device,
            splits=cached,
        )
        self._data = (key, self.trainer.splits)
        training = self.trainer.task.training
        reason = training.why_no_hyper_step(self.trainer.splits.train.steps(training.batch_size))
        if reason and self.trainer.rule.tunes and training.warmup_epochs < training.epochs:  # not so on purpose
            logger.warning("%s tunes nothing on task %r: %s", self.trainer.rule.name, self.trainer.task.name, reason)
        self.best_val_loss = math.inf
        self.parent_trial_id = ""
        self.segment = ""
        self.has_copied = False  # whether the schedule began as that of another trial, whose checkpoint Tune copied
        self.exploited = 0  # the comparison after which this trial last went on from another one
        self._restoring: tune.Checkpoint | None = None
        self._saved = self.trainer.epoch, time.monotonic()

    def step(self) -> dict[str, Any]:
        cost, device_time_s = self.trainer.meter.cost, self.trainer.device_time_s
        report = self.trainer.run_epoch()
        self.best_val_loss = min(self.best_val_loss, report["val_loss"])
        diverged, finished = self.trainer.diverged, self.trainer.finished
        return {
            **report,
            "best_val_loss": self.best_val_loss,
            "cost_increment": self.trainer.meter.cost - cost,
            "device_time_increment_s": self.trainer.device_time_s - device_time_s,
            "peak_memory_bytes": peak_memory(self.trainer.device),
            "parent_trial_id": self.parent_trial_id,
            "segment": self.segment,
            "status": "diverged" if diverged else "finished" if finished else "running",
            "reason": diverged or self.trainer.restarted or "",
            "done": bool(finished),
            **self._wish(),
        }

    def _wish(self) -> dict[str, bool]:
        """Whether Tune should save the trial now, by its key; nothing where the trial's config does not ask for it."""
        if CHECKPOINT_EPOCHS not in self.config:
            return {}
        epochs, seconds = self.trainer.epoch - self._saved[0], time.monotonic() - self._saved[1]
        return {SHOULD_CHECKPOINT: epochs >= self.config[CHECKPOINT_EPOCHS] and seconds >= CHECKPOINT_S}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the state, and beside it the schedule so far as a Parquet file."""
        self._saved = self.trainer.epoch, time.monotonic()
        state = {
            "trainer": self.trainer.state_dict(),
            "recipe": recipe(self.config),
            "trial_id": self.trial_id,
            "cost": self.trainer.meter.cost,
            "best_val_loss": self.best_val_loss,
            "parent_trial_id": self.parent_trial_id,
            "segment": self.segment,
            "exploited": self.exploited,
            "has_copied": self.has_copied,
        }
        save_state(state, Path(checkpoint_dir) / STATE_FILE)
        trainer, path = self.trainer, Path(checkpoint_dir) / SCHEDULE_FILE
        tuned, owner = trainer.rule.tunes, "" if self.has_copied else self.trial_id
        space, until = trainer.task.space, trainer.step
        write_schedule(trainer.schedule, space, tuned=tuned, until=until, trial_id=owner, path=path)

    def restore(self, checkpoint_path: Any) -> None:
        """Tune's own; but where the checkpoint is gone, from the newest that there is of its trial.

        Tune saves its state of a run from time to time. After a crash of its process, that may name a checkpoint
        that newer ones have replaced since.
        """
        wanted = getattr(checkpoint_path, "checkpoint", checkpoint_path)
        if isinstance(wanted, str):
            wanted = checkpoint_path = tune.Checkpoint(wanted)
        if isinstance(wanted, tune.Checkpoint):
            self._restoring = existing(wanted)
            if self._restoring is not wanted:
                checkpoint_path = self._restoring
            refuse_pickle(self._restoring)
        super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from a checkpoint directory; if its file is damaged, from an older one of the same trial.

        A checkpoint of another trial (a population method copies the better one) makes this trial its child: a fixed
        trial keeps the hyperparameters of its own config, a self-tuning one takes those of the checkpoint.
        Where `STNScheduler` has told this trial to go on from another one, and it has not yet, that is done here.
        """
        own = self._restoring or tune.Checkpoint(str(checkpoint))
        state = self._load_newest(own, Path(str(checkpoint)))
        population = self.config.get(POPULATION, {"round": 0})
        if state["exploited"] < population["round"] and self.trial_id in population["exploits"]:
            self._exploit(state, own, population["exploits"][self.trial_id])
            self.exploited = population["round"]
            return
        self.trainer.load_state_dict(state["trainer"])
        self.best_val_loss = state["best_val_loss"]
        self.parent_trial_id, self.segment = state["parent_trial_id"], state["segment"]
        self.exploited, self.has_copied = state["exploited"], state["has_copied"]
        if state["trial_id"] != self.trial_id:
            self.parent_trial_id, self.has_copied = state["trial_id"], True
            origin = f"{self.trial_id}<{state['trial_id']}<{state['segment']}<{sorted(self.trainer.hp.items())}"
            # Derived, not drawn: when this trial is itself restored, the same copy gets the same name.
            self.segment = f"{derive_seed(0, origin, self.trainer.epoch):016x}"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this process (Tune's `reuse_actors`), keeping the data if it is the same."""
        self.setup(new_config)
        return True

    def _exploit(self, state: dict[str, Any], own: tune.Checkpoint, exploit: dict[str, Any]) -> None:
        """Take over from another trial; costs, the best loss and the schedule so far are those of this trial's state.

        Args:
            state: State of this trial until now.
            own: Checkpoint of this trial: another trial's checkpoints are in a folder beside it, on whatever storage.
            exploit: `trial_id`, `checkpoint` (folder of the trial and of the checkpoint), `branch` and `widen`.
        """
        path = Path(own.path).parent.parent / exploit["checkpoint"]
        found = existing(tune.Checkpoint(path.as_posix(), own.filesystem))
        with found.as_directory() as directory:
            other = self._load_newest(found, Path(directory))
        self.trainer.take_over(
            other["trainer"], state["trainer"], cost=state["cost"], branch=exploit["branch"], widen=exploit["widen"]
        )
        self.best_val_loss = state["best_val_loss"]
        self.parent_trial_id, self.segment = exploit["trial_id"], exploit["branch"]
        self.has_copied = state["has_copied"]

    def _given(self, name: str, otherwise: float) -> float:
        """How much of a resource Tune gave to this trial."""
        resources = self.trial_resources
        return float(resources.required_resources.get(name, otherwise)) if resources is not None else otherwise

    def _load_newest(self, checkpoint: tune.Checkpoint, directory: Path) -> dict[str, Any]:
        """The state of a checkpoint, or if that is damaged, of an older one of its trial.

        Args:
            checkpoint: Checkpoint on its storage.
            directory: Where the checkpoint's files are on this machine.
        """
        try:
            return load_state(directory / STATE_FILE, device=self.trainer.device)
        except CheckpointError as error:
            for candidate in older(checkpoint):
                try:
                    with candidate.as_directory() as there:
                        state = load_state(Path(there) / STATE_FILE, device=self.trainer.device)
                except CheckpointError:
                    continue
                logger.warning("%s; going on from the older %s", error, candidate.path)
                return state
            raise


def recipe(config: Mapping[str, Any]) -> str | None:
    """What makes the task again: its name and settings as JSON; None where they are objects of the user's."""
    settings = {key: value for key, value in config.items() if key not in OWN_KEYS}
    if not isinstance(config.get("task"), str):
        return None
    try:
        return json.dumps({"task": config["task"], "settings": settings})
    except TypeError:
        return None


def _schedule(given: Schedule | str | Path | None) -> Schedule | None:
    if given is None or isinstance(given, Schedule):
        return given
    if isinstance(given, (str, Path)):
        return Schedule.from_parquet(given)
    raise ValueError(f"schedule={given!r}: accepted is a Schedule, or the path or URI of its Parquet file")
