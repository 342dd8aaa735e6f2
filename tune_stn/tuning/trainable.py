"""One training run as a Ray Tune trial."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import ray
import torch
from pyarrow.fs import FileSelector, FileType
from ray import tune

from tune_stn.data.splits import Splits
from tune_stn.tasks.registry import get_task
from tune_stn.training.checkpoint import CheckpointError, load_state, save_state
from tune_stn.training.schedule import write_schedule
from tune_stn.training.seeds import derive_seed
from tune_stn.training.trainer import Trainer

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"
SCHEDULE_FILE = "schedule.parquet"
# Everything else in a trial's config is a setting of the task or of its training.
OWN_KEYS = ("task", "algorithm", "hp", "seed")


class STNTrainable(tune.Trainable):
    """A trial that trains a task by one algorithm, an epoch a step, and reports its hyperparameters as it goes.

    Config:
        task: a built-in task's name, `module:attribute`, or a `Task`.
        algorithm: "stn" (default), "delta-stn" or "fixed".
        hp: start values by hyperparameter (the constants of "fixed"); absent ones take the task's start values.
        seed: default 0.
        anything else: a setting of the task (`train_images`) or of its training (`lr`, `epochs`); so a Tune searcher
            tunes from outside what the gradient cannot.

    Each result has the keys of `Trainer.run_epoch`, and `best_val_loss`, `cost_increment` and
    `device_time_increment_s` (spent in this step),
    `status` ("running", "finished", "diverged") with `reason`, `parent_trial_id` and `segment` (which tell a trial's
    continuation from a copy of another trial). The trial ends itself after the task's epochs, or when it diverges.

    Runs on the GPU that Tune gave it, else on as many CPU threads as it was given CPUs.

    Example:
        >>> tune.run(STNTrainable, config={"task": "digits-mlp", "algorithm": "stn"}, stop={"epoch": 5})
    """

    def setup(self, config: dict[str, Any]) -> None:
        settings = {key: value for key, value in config.items() if key not in OWN_KEYS}
        task, seed = config.get("task"), config.get("seed", 0)
        if task is None:
            raise ValueError("config has no 'task': give a built-in name, module:attribute, or a Task")
        gpus = ray.get_gpu_ids() if ray.is_initialized() else []
        torch.set_num_threads(self._threads())
        self._data: tuple[Any, Splits] | None = getattr(self, "_data", None)
        key = (task, seed, settings)
        cached = self._data[1] if self._data is not None and self._data[0] == key else None
        self.trainer = Trainer(
            get_task(task, **settings),
            algorithm=config.get("algorithm", "stn"),
            hp=config.get("hp"),
            seed=seed,
            device="cuda" if gpus else "cpu",
            splits=cached,
        )
        self._data = (key, self.trainer.splits)
        self.best_val_loss = math.inf
        self.parent_trial_id = ""
        self.segment = ""

    def step(self) -> dict[str, Any]:
        cost, device_time_s = self.trainer.meter.cost, self.trainer.device_time_s
        report = self.trainer.run_epoch()
        self.best_val_loss = min(self.best_val_loss, report["val_loss"])
        diverged = self.trainer.diverged
        done = diverged is not None or self.trainer.epoch >= self.trainer.task.training.epochs
        return {
            **report,
            "best_val_loss": self.best_val_loss,
            "cost_increment": self.trainer.meter.cost - cost,
            "device_time_increment_s": self.trainer.device_time_s - device_time_s,
            "parent_trial_id": self.parent_trial_id,
            "segment": self.segment,
            "status": "diverged" if diverged else "finished" if done else "running",
            "reason": diverged or self.trainer.restarted or "",
            "done": done,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the state, and beside it the schedule so far as a Parquet file."""
        state = {
            "trainer": self.trainer.state_dict(),
            "trial_id": self.trial_id,
            "best_val_loss": self.best_val_loss,
            "parent_trial_id": self.parent_trial_id,
            "segment": self.segment,
        }
        save_state(state, Path(checkpoint_dir) / STATE_FILE)
        trainer = self.trainer
        write_schedule(
            trainer.schedule, trainer.task.space, tuned=trainer.rule.tunes, path=Path(checkpoint_dir) / SCHEDULE_FILE
        )

    def restore(self, checkpoint_path: Any) -> None:
        """Tune's own; but where the checkpoint is gone, from the newest that there is of its trial.

        Tune saves its state of a run from time to time. After a crash of its process, that may name a checkpoint
        that newer ones have replaced since.
        """
        wanted = getattr(checkpoint_path, "checkpoint", checkpoint_path)
        if isinstance(wanted, tune.Checkpoint) and wanted.filesystem is not None:
            siblings = FileSelector(Path(wanted.path).parent.as_posix(), allow_not_found=True)
            folders = [f for f in wanted.filesystem.get_file_info(siblings) if f.type == FileType.Directory]
            there = {f.base_name: f.path for f in folders if f.base_name.startswith("checkpoint_")}
            if there and Path(wanted.path).name not in there:
                checkpoint_path = tune.Checkpoint(there[max(there)], wanted.filesystem)
        super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from a checkpoint directory; if its file is damaged, from an older one of the same trial.

        A checkpoint of another trial (a population method copies the better one) makes this trial its child: a fixed
        trial keeps the hyperparameters of its own config, a self-tuning one takes those of the checkpoint.
        """
        state = self._load_newest(Path(str(checkpoint)))
        self.trainer.load_state_dict(state["trainer"])
        self.best_val_loss = state["best_val_loss"]
        self.parent_trial_id, self.segment = state["parent_trial_id"], state["segment"]
        if state["trial_id"] != self.trial_id:
            self.parent_trial_id = state["trial_id"]
            origin = f"{self.trial_id}<{state['trial_id']}<{state['segment']}<{sorted(self.trainer.hp.items())}"
            # Derived, not drawn: when this trial is itself restored, the same copy gets the same name.
            self.segment = f"{derive_seed(0, origin, self.trainer.epoch):016x}"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this process (Tune's `reuse_actors`), keeping the data if it is the same."""
        self.setup(new_config)
        return True

    def _threads(self) -> int:
        resources = self.trial_resources
        cpus = resources.required_resources.get("CPU", 1) if resources is not None else 1
        return max(1, int(cpus))

    def _load_newest(self, directory: Path) -> dict[str, Any]:
        try:
            return load_state(directory / STATE_FILE, device=self.trainer.device)
        except CheckpointError as error:
            older = sorted(p for p in directory.parent.glob("checkpoint_*") if p.name < directory.name)
            for candidate in reversed(older):
                try:
                    state = load_state(candidate / STATE_FILE, device=self.trainer.device)
                except CheckpointError:
                    continue
                logger.warning("%s; going on from the older %s", error, candidate)
                return state
            raise
