"""Writes reference/schema.md, the page of the files and tables of a study, from their schemas.

python docs/schema.py           # rewrites the page
python docs/schema.py --check   # exit code 1 if the page is not what the schemas say
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from tune_stn.training.tables import (
    ALLOWED,
    CHOICE,
    INCUMBENT_SCHEMA,
    SCHEDULE_SCHEMA,
    STUDY_SCHEMA_VERSION,
    reports_schema,
)

PAGE = Path(__file__).parent / "reference" / "schema.md"
ABOUT = f"""\
# Files and tables of a study

`python docs/schema.py` writes this page from the schemas in `tune_stn/training/tables.py`: change those or the script.

A study is a directory:

| file | what it holds |
| --- | --- |
| `study.json` | task, methods, seeds, budget, settings, versions, machine, commit; which runs are missing, and why |
| `reports.parquet` | one row for each report of a trial, usually one an epoch |
| `schedule.parquet` | one row for each change of one hyperparameter |
| `incumbent.parquet` | one row for each improvement of a run's best validation loss |
| `report.html`, `plots/` | the report and its pictures |
| `state/` | a folder for each run: its journal, checkpoints of Ray Tune, and `done.json` once it has ended |

The schema version is {STUDY_SCHEMA_VERSION}; it is in the metadata of each Parquet file and in `study.json`. Tables of
another version are refused with a line that says so. The same columns hold for self-tuning runs, baselines, PBT and
anything that a [`Recorder`](../how-to/recorder.md) has written.
"""
TABLES = {
    "reports": (
        reports_schema(["<metric>"], ["<name>"], ["<name>"]),
        "One row for each report of a trial. `cost` is the trial's own; `cost_total` is the run's and never rewinds, "
        "unlike Ray Tune's `training_iteration` and `time_total_s` on an exploit step of PBT.",
    ),
    "schedule": (
        SCHEDULE_SCHEMA,
        "One row for each change of one hyperparameter, in long format: for self-tuning runs, PBT and constants alike.",
    ),
    "incumbent": (INCUMBENT_SCHEMA, "One row for each time that a run's best validation loss falls."),
}
MEANINGS = {
    "task": "Name of the task.",
    "method": "Name of the method.",
    "seed": "Seed of the run.",
    "trial_id": "Ray Tune's name of the trial. In `incumbent`: of the trial that has the loss.",
    "parent_trial_id": "The trial whose checkpoint this one continues, after an exploit step; else null.",
    "report_index": "Number of the report in its run, from 0.",
    "epoch": "Epochs of training that the trial has done. In `schedule`: the epoch in which the value begins.",
    "step": "Training steps that the trial has done. In `schedule`: the step from which the value is in force.",
    "cost": "Cost of the trial so far, in training epochs of the plain network.",
    "cost_total": "Cost of the run so far, over all its trials.",
    "wall_time_s": "Seconds since the run's first trial was placed.",
    "device_time_s": "Seconds in which the trial trained or evaluated.",
    "train_loss": "Mean training loss of the epoch, with regularisation.",
    "val_loss": "Loss over the validation split, without regularisation.",
    "test_loss": "Loss over the test split; NaN where it was not evaluated (`Training.test_every`).",
    "<metric>": "A column for each metric of the task, such as `val_accuracy` and `test_accuracy`.",
    "hp/<name>": "Value of the hyperparameter at the report, one column for each.",
    f"{CHOICE}<name>": "Value, as text, of a hyperparameter that is not a number; only in recorded runs of others.",
    "status": "State of the trial at the report.",
    "hp": "Name of the hyperparameter.",
    "value": "Its value, inside its domain.",
    "raw": "Its raw coordinate; null for methods without one.",
    "scale": "Standard deviation of the draws around the raw coordinate; null for methods without one.",
    "source": "What made the value.",
    "best_val_loss": "The run's least validation loss so far.",
    "test_loss_at_best": "The test loss at the same report.",
}


def main() -> None:
    made = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made)
    elif PAGE.read_text() != made:
        sys.exit("docs/reference/schema.md is not what the schemas say: run python docs/schema.py")


def page() -> str:
    """The page in Markdown. Raises KeyError for a column without a meaning."""
    parts = [ABOUT]
    for name, (schema, about) in TABLES.items():
        rows = "\n".join(row(field) for field in schema)
        parts.append(f"## {name}\n\n{about}\n\n| column | type | meaning |\n| --- | --- | --- |\n{rows}\n")
    return "\n".join(parts)


def row(field: pa.Field) -> str:
    meaning = MEANINGS[field.name]
    if field.name in ALLOWED:
        meaning += f" One of {', '.join(f'`{word}`' for word in ALLOWED[field.name])}."
    kind = f"{field.type}, may be null" if field.nullable else str(field.type)
    return f"| `{field.name}` | {kind} | {meaning} |"


if __name__ == "__main__":
    main()
