"""The trained model of a study, or of any checkpoint of a trial, as an ordinary module."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from safetensors.torch import save_model
from torch import nn

from tune_stn.files import whole_file
from tune_stn.study.state import state_folder
from tune_stn.tasks.registry import get_task
from tune_stn.tasks.task import Task
from tune_stn.training.checkpoint import STATE_FILE, CheckpointError, load_state
from tune_stn.training.trainer import Trainer

if TYPE_CHECKING:
    from tune_stn.study.results import Results

MODEL, HYPERPARAMETERS = "model.safetensors", "hyperparameters.json"


@dataclass(frozen=True)
class Best:
    """The best epoch of a study, by validation loss.

    Attributes:
        task, method, seed, trial_id: The trial and its run.
        epoch: Number of the epoch within the trial, from 1.
        hyperparameters: The values at its end, by name.
        metrics: Losses and metrics of the validation and test splits, by name as in `reports`.
        checkpoint: The folder of the trial's newest checkpoint, which has the state at the best epoch in it; None where
            checkpoints are elsewhere (`--storage-path`) or gone.
    """

    task: str
    method: str
    seed: int
    trial_id: str
    epoch: int
    hyperparameters: dict[str, float]
    metrics: dict[str, float]
    checkpoint: Path | None


def best_of(results: Results, method: str | None, seed: int | None) -> Best:
    """The best epoch of all runs, or of those of a method or seed.

    Args:
        results: A study.
        method: Its name, or None for all.
        seed: The seed, or None for all.

    Raises:
        ValueError: There is no finite validation loss of it.
    """
    reports = results.reports
    chosen = reports[reports["val_loss"].map(pd.notna) & (reports["val_loss"] < float("inf"))]
    for name, value in (("method", method), ("seed", seed)):
        if value is not None:
            accepted = sorted(chosen[name].unique())
            if value not in accepted:
                there = ", ".join(str(one) for one in accepted) or "none"
                raise ValueError(f"{name}={value!r}: the study in {results.path} has results of {there}")
            chosen = chosen[chosen[name] == value]
    if not len(chosen):
        raise ValueError(f"the study in {results.path} has no finite validation loss")
    row = {str(name): value for name, value in chosen.sort_values("val_loss").iloc[0].items()}
    values = {name[3:]: float(value) for name, value in row.items() if name.startswith("hp/") and pd.notna(value)}
    metrics = {name: float(value) for name, value in row.items() if name.startswith(("val_", "test_"))}
    folder = state_folder(results.path, row["method"], row["seed"]) / "tune"
    return Best(
        task=str(row["task"]),
        method=str(row["method"]),
        seed=int(row["seed"]),
        trial_id=str(row["trial_id"]),
        epoch=int(row["epoch"]),
        hyperparameters=values,
        metrics=metrics,
        checkpoint=max(folder.glob(f"*/*{row['trial_id']}*/checkpoint_*"), default=None, key=lambda path: path.name),
    )


def load_model(
    path: str | Path, *, task: Task | str | None = None, method: str | None = None, seed: int | None = None
) -> nn.Module:
    """The trained model: an ordinary module of the user's class, in evaluation mode (`SelfTuningModel.to_plain`).

    Args:
        path: Folder of a checkpoint of `STNTrainable` (`result.checkpoint.path`), its file, or the directory of a
            study, of which the best run counts.
        task: What was trained; None for what the checkpoint names. Needed where a `Task` was given as an object.
        method: Method whose best run it is, in a study. Default None: the best of all.
        seed: Seed whose best run it is, in a study. Default None: the best of all.

    Returns:
        The model at the end of the best epoch, if that was kept (`keep_best`, as in every study), or else of the last.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CheckpointError: It is damaged, or does not fit the task.
        ValueError: The checkpoint does not name its task, or the study has no such run.
    """
    from tune_stn.study.results import load_results

    path = Path(path)
    if (path / "study.json").is_file():
        return _load_best(best_of(load_results(path), method, seed), path, task)
    return _model(*_state(path), task)


def _load_best(best: Best, study: Path, task: Task | str | None) -> nn.Module:
    """The model of a study's best trial; warns where no checkpoint has its best epoch."""
    state, file = _state(_checkpoint(best, study))
    if state["best_val_loss"] > best.metrics["val_loss"]:
        had, reported = state["best_val_loss"], best.metrics["val_loss"]
        warnings.warn(
            f"the newest checkpoint of the best trial, {best.trial_id} of {best.method}, was made before its best "
            f"epoch: this model had a validation loss of {had:.4g}, not {reported:.4g}",
            stacklevel=3,
        )
    return _model(state, file, task)


def _state(path: Path) -> tuple[dict[str, Any], Path]:
    """The state of a trial in a checkpoint, and the file that it is from."""
    file = path / STATE_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: give a study's directory, or a folder that holds {STATE_FILE}"
        )
    state = load_state(file)
    if "trainer" not in state:
        raise CheckpointError(f"checkpoint {file} is none of STNTrainable")
    return state, file


def _checkpoint(best: Best, study: Path) -> Path:
    """The checkpoint of a study's best trial. Raises FileNotFoundError where there is none."""
    if best.checkpoint is None:
        raise FileNotFoundError(
            f"the best trial of the study in {study}, {best.trial_id} of {best.method}, has no checkpoint there: "
            "give the path of one, if they are kept elsewhere"
        )
    return best.checkpoint


def _model(state: dict[str, Any], file: Path, task: Task | str | None) -> nn.Module:
    if task is not None:
        made = get_task(task)
    elif state["recipe"] is not None:
        recipe = json.loads(state["recipe"])
        made = get_task(recipe["task"], **recipe["settings"])
    else:
        raise ValueError(f"checkpoint {file} does not name its task, which was an object: give it as task=")
    of_run = state["trainer"]
    if of_run["task"] != made.name:
        raise CheckpointError(f"task={made.name}: checkpoint {file} is of task {of_run['task']!r}")
    trainer = Trainer(made, algorithm=of_run["algorithm"], hp=of_run["hp"], seed=of_run["seed"])
    trainer.load_state_dict(of_run)
    trainer.model.load_state_dict(of_run["model"] if of_run["best"] is None else of_run["best"])
    return trainer.model.to_plain().eval()


def export_model(
    results: Results, out: str | Path, *, method: str | None, seed: int | None, task: Task | str | None = None
) -> list[Path]:
    """Write weights and hyperparameters of the best run to the directory `out`, which is made where it is missing.

    Args:
        results: Results of the study.
        out: The directory.
        method: Whose best run; None for the best of all.
        seed: Whose best run; None for the best of all.
        task: The task, as for `load_model`. Default None.

    Returns:
        The paths written: `model.safetensors`, with the names of the user's own `state_dict`, and
        `hyperparameters.json`.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: As from `load_model`.
    """
    best = best_of(results, method, seed)
    model = _load_best(best, results.path, task)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    with whole_file(directory / MODEL) as temporary:
        save_model(model, str(temporary))
    with whole_file(directory / HYPERPARAMETERS) as temporary:
        about = {key: value for key, value in asdict(best).items() if key != "checkpoint"}
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return [directory / MODEL, directory / HYPERPARAMETERS]
