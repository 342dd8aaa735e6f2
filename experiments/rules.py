"""Update rules and their controls on ten task settings, on the trainer alone, without Ray.

An arm is one way to train a setting at one seed:

    plain           the plain network at the task's start values
    random          plain runs at values drawn from the whole space, of which the start values are none
    auto            a run of the default rule; with it come two of its controls:
      auto/replayed   the run's schedule on the plain network
      auto/last       the run's final values, held from the start on the plain network
    auto/frozen     the rule without hyper-steps
    progress-ratio, stn, delta-stn    runs of the other rules
    lr              the plain network at several learning rates, by factors of two
    hyper-lr        `auto` at fixed step sizes and at the automatic one, over 50 to 5,000 hyper-steps; on the digits
    starts          `auto` from random start values, at seed 0
    outside         every way to tune, with the learning rate searched from outside: the same random ones for all, but
                    for `tpe`, which searches them and the hyperparameters one after another (Optuna's, as in Ray Tune)
    placebo         plain and `auto` with hyperparameters that have no effect

Every run is a row in experiments/results/rules/SETTING.parquet, written as soon as it ends; a run that is there is not
run again. `experiments/rules_tables.py` makes the tables.

    python experiments/rules.py --data-dir FOLDER --arms plain,auto,random --settings mlp,cnn --seeds 10
    python experiments/rules.py --smoke-test

FOLDER holds `ptb` and `cifar-10-batches-py`. One thread a process, two processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from provenance import commit

from tune_stn.data import Batch, Splits
from tune_stn.data.splits import Examples
from tune_stn.space import SearchSpace
from tune_stn.space.quantile import quantile
from tune_stn.tasks import Task, get_task
from tune_stn.testing import placebo
from tune_stn.training import Trainer
from tune_stn.training.schedule import Schedule

RESULTS = Path(__file__).parent / "results" / "rules"
RANDOM = 16  # trials of the random search that a rule is held to, at each seed
ORACLE = 24  # fixed settings at seed 0, the same 16 and more: what there is to gain
STARTS = 24
RULES = ("auto", "progress-ratio", "stn", "delta-stn")
OUTSIDE = ("plain", "random", "tpe", *RULES)
HYPER_LRS = (0.01, 0.05, 0.2, "auto")
HYPER_STEPS = (50, 500, 5_000)  # of `hyper-lr`: one an epoch, on the digits


@dataclass(frozen=True)
class Setting:
    """A task at a size that two cores train in seconds.

    Attributes:
        task: name of a built-in task.
        settings: of the task and its training.
        lrs: learning rates of the sweep, by factors of two.
        lr: the best of them, at which all arms train.
        folder: what it reads inside the folder of data sets, or None.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    lrs: tuple[float, ...] = ()
    lr: float | None = None


MLP = {"train_images": 512, "valid_images": 1024, "test_images": 1000, "hidden": 300, "epochs": 120}
CIFAR = {"train_images": 1280, "valid_images": 1000, "test_images": 1000, "width": 8, "lr_schedule": None}
CIFAR |= {"lr_schedule_args": {}}
TEXT = {"train_tokens": 10_000, "vocabulary": 1_000, "batch_size": 10, "window": 20, "epochs": 25}
PTB = TEXT | {"hidden": 64, "valid_tokens": 5_000, "test_tokens": 5_000}
SETTINGS: Mapping[str, Setting] = {
    "digits": Setting("digits-mlp", lrs=(0.025, 0.05, 0.1, 0.2, 0.4), lr=0.1),
    "mlp": Setting("fashion-mnist-mlp", MLP, lrs=(0.0025, 0.005, 0.01, 0.02, 0.04, 0.08), lr=0.005),
    "mlp-affine": Setting(
        "fashion-mnist-mlp", MLP | {"affine": True}, lrs=(0.0025, 0.005, 0.01, 0.02, 0.04, 0.08), lr=0.005
    ),
    "mlp-2560": Setting(
        "fashion-mnist-mlp", MLP | {"train_images": 2560, "epochs": 60}, lrs=(0.005, 0.01, 0.02, 0.04, 0.08), lr=0.01
    ),
    "cnn": Setting(
        "fashion-mnist-cnn",
        {"train_images": 1280, "valid_images": 1024, "test_images": 1000, "hidden": 128, "epochs": 50},
        lrs=(0.005, 0.01, 0.02, 0.04, 0.08),
        lr=0.01,
    ),
    "resnet": Setting(
        "cifar10-resnet18",
        CIFAR | {"train_images": 640, "valid_images": 640, "batch_size": 64, "epochs": 30},
        folder="cifar-10-batches-py",
        lrs=(0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04),
        lr=0.0025,
    ),
    "vgg": Setting(
        "cifar10-vgg16",
        CIFAR | {"epochs": 30},
        folder="cifar-10-batches-py",
        lrs=(0.02, 0.04, 0.08, 0.16),
        lr=0.04,
    ),
    "ptb": Setting("ptb-lstm", PTB, folder="ptb", lrs=(2.0, 4.0, 8.0, 16.0, 32.0), lr=16.0),
    "text-lstm": Setting("text-lstm", TEXT | {"hidden": 64}, lrs=(2.0, 4.0, 8.0, 16.0), lr=4.0),
    "transformer": Setting(
        "text-transformer",
        {"width": 48, "layers": 2, "train_tokens": 10_000, "vocabulary": 1_000, "epochs": 25},
        lrs=(0.0005, 0.001, 0.002, 0.004, 0.008),
        lr=0.002,
    ),
}
SMOKE = {"digits": Setting("digits-mlp", {"epochs": 3, "hidden": 16}, lrs=(0.1, 0.2))}


@dataclass(frozen=True)
class Run:
    """One row to be.

    Attributes:
        setting: name of the setting.
        arm: as above; "random" and the like with a number, "random-3".
        seed: of data, weights and noise.
        algorithm: the update rule.
        changes: settings of the task or its training, over those of the setting.
        hp: start values, or the constants of a fixed run; those of the task where it names none.
        controls: whether replay and last values follow.
        placebo: whether the task is trained with hyperparameters that have no effect.
        tpe: whether values and learning rate come from TPE, a trial after the other; rows "ARM-0" and on.
    """

    setting: str
    arm: str
    seed: int
    algorithm: str = "fixed"
    changes: Mapping[str, Any] = field(default_factory=dict)
    hp: Mapping[str, float] | None = None
    controls: bool = False
    placebo: bool = False
    tpe: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--arms", default="plain,auto,progress-ratio,stn,delta-stn,random")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--no-controls", action="store_true", help="no replay and last values beside auto")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of every run; for trials")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke-test", action="store_true")
    arguments = parser.parse_args()
    settings = SMOKE if arguments.smoke_test else SETTINGS
    chosen = list(settings) if arguments.smoke_test else arguments.settings.split(",")
    seeds = 1 if arguments.smoke_test else arguments.seeds
    common = {name: json.loads(value) for name, _, value in (given.partition("=") for given in arguments.set)}
    arguments.results.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for name in chosen:
            file = arguments.results / f"{name}.parquet"
            done = finished(file)
            task = make_task(settings[name], arguments.data_dir)
            runs = [r for arm in arguments.arms.split(",") for r in wanted(name, settings[name], arm, task, seeds)]
            futures = [
                pool.submit(
                    rows,
                    replace(
                        run, changes={**common, **run.changes}, controls=run.controls and not arguments.no_controls
                    ),
                    settings[name],
                    arguments.data_dir,
                )
                for run in runs
                if (f"{run.arm}-0" if run.tpe else run.arm, run.seed) not in done
            ]
            try:
                for future in as_completed(futures):
                    keep(file, future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # or it would train what nobody keeps
                raise


def finished(file: Path) -> set[tuple[str, int]]:
    """The (arm, seed) of the rows that are there."""
    return set(pd.read_parquet(file)[["arm", "seed"]].itertuples(index=False, name=None)) if file.exists() else set()


def wanted(setting: str, settings: Setting, arm: str, task: Task, seeds: int) -> Iterator[Run]:
    """The runs of an arm on a setting."""
    for seed in range(seeds):
        if arm == "plain":
            yield Run(setting, "plain", seed)
        elif arm == "random":
            for number, hp in enumerate(random_values(task, RANDOM if seed else ORACLE, seed)):
                yield Run(setting, f"random-{number}", seed, hp=hp)
        elif arm in RULES:
            yield Run(setting, arm, seed, arm, controls=arm == "auto")
        elif arm.endswith("/frozen"):
            yield Run(setting, arm, seed, arm.partition("/")[0], {"warmup_epochs": task.training.epochs})
        elif arm == "lr":
            for lr in settings.lrs:
                yield Run(setting, f"lr-{lr:g}", seed, changes={"lr": lr})
        elif arm == "hyper-lr":
            for count, hyper_lr in itertools.product(HYPER_STEPS, HYPER_LRS):
                changes = {"hyper_lr": hyper_lr, "epochs": count + task.training.warmup_epochs, "train_steps": 6}
                yield Run(setting, f"hyper-lr-{hyper_lr}-{count}", seed, "auto", changes)
        elif arm == "placebo":
            yield Run(setting, "placebo-plain", seed, placebo=True)
            yield Run(setting, "placebo-auto", seed, "auto", placebo=True)
        elif arm == "starts":
            if seed == 0:
                for number, hp in enumerate(random_values(task, STARTS, seed)):
                    yield Run(setting, f"starts-{number}", 0, "auto", hp=hp)
        elif arm == "outside":
            low, high = np.log(settings.lrs[0]), np.log(settings.lrs[-1])
            lrs = np.exp(np.random.default_rng([seed, 1]).uniform(low, high, RANDOM))
            values = random_values(task, RANDOM, seed)
            for way in OUTSIDE:
                if way == "tpe":
                    yield Run(setting, "outside/tpe", seed, tpe=True)
                    continue
                for number, lr in enumerate(lrs):
                    hp = values[number] if way == "random" else None
                    rule = way if way in RULES else "fixed"
                    yield Run(setting, f"outside/{way}-{number}", seed, rule, {"lr": float(lr)}, hp=hp)
        else:
            raise SystemExit(f"--arms: unknown arm {arm!r}")


def rows(run: Run, setting: Setting, data_dir: Path | None) -> list[dict[str, Any]]:
    """Train a run, and its controls; one row each."""
    torch.set_num_threads(1)
    if run.tpe:
        return tpe(run, setting, data_dir)
    task = make_task(setting, data_dir, **run.changes)
    if run.placebo:
        task = placebo(task)
    task = replace(task, training=replace(task.training, keep_best=True))
    splits = task.data(run.seed)
    common = {"seed": run.seed, "splits": replace(splits, test=OneExample(splits.test))}
    trainer = Trainer(task, algorithm=run.algorithm, hp=run.hp, **common)
    made = [trained(run, run.arm, trainer, splits)]
    if run.controls:
        names, points = tuple(task.space), trainer.schedule
        domains = list(task.space.values())
        values = np.array([[float(d.transform(c)) for d, c in zip(domains, raw, strict=True)] for raw in points.raw])
        schedule = Schedule(names=names, times=np.array(points.steps), values=values)
        last = Schedule(names=names, times=np.array([0]), values=values[-1:])
        for arm, replayed in (("replayed", schedule), ("last", last)):
            plain = Trainer(task, algorithm="fixed", schedule=replayed, **common)
            made.append(trained(run, f"{run.arm}/{arm}", plain, splits))
    return made


def tpe(run: Run, setting: Setting, data_dir: Path | None) -> list[dict[str, Any]]:
    """As many trials as a random search has, at what TPE asks for after the trials before."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, made = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=run.seed)), []
    space = make_task(setting, data_dir).space
    for number in range(RANDOM):
        trial = study.ask()
        lr = trial.suggest_float("lr", setting.lrs[0], setting.lrs[-1], log=True)
        shares = {name: trial.suggest_float(name, 1e-6, 1 - 1e-6) for name in space}
        hp = values_at(space, shares)
        made += rows(replace(run, arm=f"{run.arm}-{number}", changes={"lr": lr}, hp=hp, tpe=False), setting, data_dir)
        study.tell(trial, made[-1]["val_loss"])
    return made


class OneExample:
    """A test split that takes no time in training: the whole of it is looked at once, at the best epoch."""

    def __init__(self, split: Examples) -> None:
        self.batch = next(iter(split.whole(1)))

    def to(self, device: torch.device | str) -> OneExample:
        return self

    def whole(self, batch_size: int) -> Iterator[Batch]:
        yield self.batch


def trained(run: Run, arm: str, trainer: Trainer, splits: Splits) -> dict[str, Any]:
    """Train to the end; losses at the epoch that is best on validation data, and what was learned."""
    began, reports = time.process_time(), []
    while not trainer.finished:
        reports.append(trainer.run_epoch())
    trainer.splits = splits
    metric = next(iter(trainer.task.metrics), "loss")
    best: dict[str, Any] = {"epoch": trainer.best_epoch}
    if trainer.best_epoch:
        best |= trainer.restore_best()
    else:  # it diverged before it had a good epoch
        best |= {f"{split}_loss": math.inf for split in ("val", "test")}
        best |= {f"{split}_{metric}": math.nan for split in ("val", "test")}
    values = [{key[3:]: value for key, value in report.items() if key.startswith("hp/")} for report in reports]
    return {
        "arm": arm,
        "seed": run.seed,
        "val_loss": best["val_loss"],
        "test_loss": best["test_loss"],
        "metric": metric,
        "val_metric": best[f"val_{metric}"],
        "test_metric": best[f"test_{metric}"],
        "best_epoch": best["epoch"],
        "last_val_loss": reports[-1]["val_loss"],
        "cost": reports[-1]["cost"],
        "epochs": trainer.task.training.epochs,
        "restarts": trainer.restarts,
        "diverged": trainer.diverged or "",
        "lr": trainer.task.training.lr,
        "cpu_s": time.process_time() - began,
        "val_curve": [report["val_loss"] for report in reports],
        "hp_first": json.dumps(trainer.hp),
        "hp_best": json.dumps(values[max(best["epoch"], 1) - 1]),
        "hp_last": json.dumps(values[-1]),
        "changes": json.dumps(dict(run.changes)),
        "commit": commit(),
        "versions": f"python {platform.python_version()}, torch {version('torch')}, {platform.machine()}",
    }


def make_task(setting: Setting, data_dir: Path | None, **changes: Any) -> Task:
    settings = {**setting.settings, **({} if setting.lr is None else {"lr": setting.lr}), **changes}
    if setting.folder is not None:
        if data_dir is None:
            raise SystemExit(f"--data-dir: name the folder that holds {setting.folder}")
        settings["data_dir"] = str(data_dir / setting.folder)
    return get_task(setting.task, **settings)


def random_values(task: Task, count: int, seed: int) -> list[dict[str, float]]:
    """Values drawn evenly from each domain on its own scale, the same at a seed whatever else is drawn."""
    generator = np.random.default_rng(seed)
    shares = generator.random((count, len(task.space)))
    return [values_at(task.space, dict(zip(task.space, row, strict=True))) for row in shares]


def values_at(space: SearchSpace, shares: Mapping[str, float]) -> dict[str, float]:
    """The values that these shares of random draws lie below."""
    return {name: domain.nearest(quantile(domain, shares[name])) for name, domain in space.items()}


def keep(file: Path, made: list[dict[str, Any]]) -> None:
    """Add rows to the file, whole or not at all."""
    new = pd.DataFrame(made)
    table = pd.concat([pd.read_parquet(file), new], ignore_index=True) if file.exists() else new
    partial = file.with_suffix(".partial")
    table.to_parquet(partial, index=False)
    partial.replace(file)
    for row in made:
        print(
            f"{file.stem:12} {row['arm']:24} seed {row['seed']}  val {row['val_loss']:.4f}  test {row['test_loss']:.4f}"
            f"  epoch {row['best_epoch']}  cost {row['cost']:.0f}  {row['cpu_s']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
