"""A small synthetic study on disk: three methods, three seeds, two hyperparameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tune_stn.space.domains import LogUniform, Uniform
from tune_stn.study.domains import domains_entry
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.results import Results, load_results
from tune_stn.training.tables import (
    INCUMBENT_SCHEMA,
    SCHEDULE_SCHEMA,
    STUDY_SCHEMA_VERSION,
    reports_schema,
    write_table,
)

STEPS = 20  # per epoch


def _trial(kind: str, rng: np.random.Generator, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Dropout and weight decay of one trial, each of shape (epochs + 1,), the start first."""
    t = np.arange(epochs + 1)
    if kind == "self-tuned":
        dropout = 0.05 + 0.4 * (1 - np.exp(-t / 4)) + rng.normal(0, 0.01, t.size)
        return dropout, 10 ** (-2 - 2 * (1 - np.exp(-t / 3)) + rng.normal(0, 0.05, t.size))
    start = rng.uniform(0, 0.8), 10 ** rng.uniform(-5, -1)
    if kind == "population":
        moves = rng.choice([0.8, 1.0, 1.25], (2, t.size)) ** (t % 3 == 0)
        return np.clip(start[0] * moves[0].cumprod(), 0, 0.85), start[1] * moves[1].cumprod()
    return np.full(t.size, start[0]), np.full(t.size, start[1])


def _run(
    run: dict[str, Any],
    kind: str,
    hps: tuple[str, str],
    rng: np.random.Generator,
    reports: list[dict[str, Any]],
    schedule: list[dict[str, Any]],
) -> None:
    """Append one run: two self-tuned trials or four others; a second constant trial is short."""
    tuned = kind == "self-tuned"
    source = {"self-tuned": "stn", "population": "explore", "constant": "fixed"}[kind]
    count, epochs, per_epoch, total = (2, 10, 1.8, 0.0) if tuned else (4, 8, 1.0, 0.0)
    for number in range(count):
        name = f"{run['method']}-{run['seed']}-{number}"
        trial = run | {"trial_id": name}
        values = _trial(kind, rng, epochs)
        short = kind == "constant" and number == 1
        last, diverged = 3 if short else epochs, short and run["seed"] == 0
        for epoch in range(1, last + 1):
            total += per_epoch
            dropout, decay = values[0][epoch], values[1][epoch]
            loss = 0.22 + 0.3 * (dropout - 0.4) ** 2 + 0.01 * abs(np.log10(decay) + 4)
            loss += 1.6 * np.exp(-0.6 * epoch) + rng.normal(0, 0.006)
            ended = epoch == last
            reports.append(
                trial
                | {"report_index": epoch - 1, "epoch": epoch, "step": epoch * STEPS}
                | {"cost": per_epoch * epoch, "cost_total": total}
                | {"wall_time_s": 2.1 * total + rng.uniform(0, 1), "device_time_s": 2 * per_epoch * epoch}
                | {"train_loss": loss * 0.8, "val_loss": np.nan if diverged and ended else loss}
                | {"test_loss": loss + 0.01 + rng.normal(0, 0.005), "val_accuracy": 1 - loss / 4}
                | {f"hp/{hps[0]}": dropout, f"hp/{hps[1]}": decay}
                | {"status": ("diverged" if diverged else "finished") if ended else "running"}
            )
        for hp, curve in zip(hps, values, strict=True):
            for epoch, value in enumerate(curve[: last + 1]):
                if epoch == 0 or value != curve[epoch - 1]:
                    schedule.append(
                        trial
                        | {"parent_trial_id": None, "step": epoch * STEPS, "epoch": epoch, "hp": hp}
                        | {"value": value, "raw": np.log(value) if tuned else None}
                        | {"scale": 0.5 if tuned else None, "source": source if epoch else "start"}
                    )


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Write a study and return its directory: `make_study(kinds={"stn": "self-tuned"}, hps=("a", "b"))`."""

    def make(
        name: str = "study",
        kinds: dict[str, str] | None = None,
        hps: tuple[str, str] = ("dropout", "weight_decay"),
        seeds: Sequence[int] = (0, 1, 2),
        task: str = "digits-mlp",
        missing: Sequence[dict[str, Any]] = (),
    ) -> Path:
        kinds = kinds or {"stn": "self-tuned", "pbt": "population", "random": "constant"}
        skip = {(one["method"], one["seed"]) for one in missing}
        reports: list[dict[str, Any]] = []
        schedule: list[dict[str, Any]] = []
        for index, (method, kind) in enumerate(kinds.items()):
            for seed in seeds:
                if (method, seed) not in skip:
                    run = {"task": task, "method": method, "seed": seed}
                    _run(run, kind, hps, np.random.default_rng([index, seed]), reports, schedule)
        path = tmp_path / name
        path.mkdir()
        frame = pd.DataFrame(reports)
        write_table(frame, reports_schema(["val_accuracy"], hps), path / "reports.parquet")
        write_table(schedule, SCHEDULE_SCHEMA, path / "schedule.parquet")
        write_table(best_so_far(frame), INCUMBENT_SCHEMA, path / "incumbent.parquet")
        study = {"schema_version": STUDY_SCHEMA_VERSION, "task": task, "methods": list(kinds)}
        domains = (Uniform(0.0, 0.9), LogUniform(1e-6, 1.0))
        study |= {"domains": domains_entry(dict(zip(hps, domains, strict=True)))}
        study |= {"seeds": list(seeds), "budget": 36.0, "settings": {"epochs": 8, "lr": {"base": 0.1}}}
        study |= {"versions": {"torch": "2.13.0", "ray": "2.40"}, "machine": {"cpus": 2, "gpu": None}}
        study |= {"git_commit": "abc123", "command": "tune-stn compare", "missing": list(missing)}
        (path / "study.json").write_text(json.dumps(study))
        return path

    return make


@pytest.fixture
def results(make_study: Callable[..., Path]) -> Results:
    return load_results(make_study())
