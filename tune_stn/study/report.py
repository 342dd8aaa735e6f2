"""One self-contained HTML page about a study, with its pictures embedded."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from tune_stn.files import whole_file
from tune_stn.study.controls import control_cells, control_words
from tune_stn.study.remarks import conversion_words
from tune_stn.study.results import Results
from tune_stn.study.statistics import differences_to_best
from tune_stn.study.summary import final_values, summary, summary_cells, with_interval

# Elsewhere on the page, or of no interest.
SHOWN = ("missing", "failures", "restarts", "clocks", "remarks", "conversion", "schema_version")
_LOSSES = {"validation loss": "best_val_loss", "test loss": "test_loss_at_best"}


def write_report(results: Results) -> Path:
    """Write `report.html` and `plots/*.png` into the study's directory.

    The page needs no other file, no network and no script. All names and texts in it are escaped.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the study holds several tasks.
        OSError: the directory cannot be written.
    """
    from tune_stn.study.plots import write_plots  # half a second of imports, which a refused command need not wait for

    plots = write_plots(results, results.path / "plots")
    page = _template().render(
        study=results.study,
        pictures={path.stem: base64.b64encode(path.read_bytes()).decode() for path in plots},
        summary=summary_cells(summary(results)),
        controls=control_cells(results.controls),
        control_words=control_words(results.study, results.incumbent),
        missing=_missing(results),
        trouble=_trouble(results),
        restarts=[{name: str(cell) for name, cell in one.items()} for one in results.study.get("restarts", ())],
        values=_values(results),
        differences=_differences(results.incumbent),
        remarks=results.study.get("remarks", []),
        conversion=conversion_words(results.study.get("conversion", {})),
        made=_made(results.study),
    )
    path = results.path / "report.html"
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(files("tune_stn.study").joinpath("report.html").read_text("utf-8"))


def _missing(results: Results) -> list[dict[str, str]]:
    """Runs without a value: those the study names, and those whose every loss was NaN or infinite."""
    reasons = {(one["method"], one["seed"]): one["reason"] for one in results.study["missing"]}
    found = set(zip(results.incumbent["method"], results.incumbent["seed"], strict=True))
    asked = [(method, seed) for method in results.study["methods"] for seed in results.study["seeds"]]
    return [
        {"method": run[0], "seed": str(run[1]), "reason": reasons.get(run, "no finite validation loss")}
        for run in dict.fromkeys([*asked, *reasons])
        if run in reasons or run not in found
    ]


def _trouble(results: Results) -> list[dict[str, str]]:
    """Trials that diverged or failed, where they ended, and of those that failed why."""
    columns = ["method", "seed", "trial_id", "status", "epoch", "step", "cost_total"]
    reports, failures = results.reports, results.study.get("failures", ())
    rows = _cells(reports.loc[reports["status"].isin(["diverged", "failed"]), columns])
    reasons = {(one["method"], str(one["seed"]), one["trial_id"]): one["reason"] for one in failures}
    for row in rows:
        row["reason"] = reasons.pop((row["method"], row["seed"], row["trial_id"]), "")
    for (method, seed, trial_id), reason in reasons.items():
        named = {"method": method, "seed": seed, "trial_id": trial_id, "status": "failed"}
        rows.append({**named, "epoch": "0", "step": "0", "cost_total": "-", "reason": reason})
    return rows


def _values(results: Results) -> list[dict[str, str]]:
    found = final_values(results).drop(columns="task")
    short = {name: name.removeprefix("hp/") for name in found.columns}
    # A hyperparameter of a recorded run may have the name of a column (`hp/seed`).
    return _cells(found.rename(columns={name: other for name, other in short.items() if other not in found.columns}))


def _cells(frame: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {str(name): f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _differences(incumbent: pd.DataFrame) -> dict[str, list[dict[str, str]]]:
    tables = {loss: differences_to_best(incumbent, column) for loss, column in _LOSSES.items()}
    return {
        loss: [
            {
                "method": row["method"],
                "best method": row["best"],
                "mean difference": with_interval(row["mean"], row["low"], row["high"]),
                "p": f"{row['p_value']:.3g}" if row["n"] else "-",
                "pairs": str(row["n"]),
            }
            for row in table.to_dict("records")
        ]
        for loss, table in tables.items()
        if len(table)
    }


def _made(study: dict[str, Any]) -> dict[str, str]:
    """Everything else that study.json says: a row per key, a line per entry of a nested value."""
    rows = {}
    for key, value in study.items():
        if isinstance(value, dict) and key not in SHOWN:
            rows[key] = "\n".join(f"{name}: {_plain(entry)}" for name, entry in value.items())
        elif key not in SHOWN:
            rows[key] = _plain(value)
    return rows


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
