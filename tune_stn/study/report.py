"""One self-contained HTML page about a study: its tables, and figures that its own script draws."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tune_stn.files import whole_file
from tune_stn.study.controls import control_cells, control_words
from tune_stn.study.domains import read_domains
from tune_stn.study.importance import ONE_STEP_FOR_ALL, PARTS, SAMPLED, WHOLE
from tune_stn.study.incumbent import last_of_each_run
from tune_stn.study.remarks import conversion_words
from tune_stn.study.results import Results
from tune_stn.study.statistics import differences_to_best
from tune_stn.study.summary import final_values, summary, summary_cells, with_interval

# Elsewhere on the page, or of no interest.
SHOWN = ("missing", "failures", "restarts", "clocks", "remarks", "conversion", "schema_version", "hyperparameters")
_LOSSES = {"validation loss": "best_val_loss", "test loss": "test_loss_at_best"}


def write_report(results: Results) -> Path:
    """Write `report.html` and `plots/*.png` into the study's directory.

    The page needs no other file and no network. All names and texts in it are escaped, and its content security policy
    lets a browser run the page's own script and no other.

    Args:
        results: A study of one task.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: The study holds several tasks.
        OSError: The directory cannot be written.
    """
    from tune_stn.study.figures import figures  # half a second of imports, which a refused command need not wait for
    from tune_stn.study.plots import write_plots

    write_plots(results, results.path / "plots")
    folder = files("tune_stn.study")
    script = folder.joinpath("report.js").read_text("utf-8")
    page = _template().render(
        study=results.study,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(folder.joinpath("report.css").read_text("utf-8")),
        data=figures(results),
        headline=_headline(results),
        summary=_summary(results),
        controls=control_cells(results.controls),
        control_bars=_control_bars(results),
        control_words=control_words(results.study, results.incumbent),
        importance=_importance(results.importance),
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


def load_libraries(methods: Iterable[str]) -> None:
    """Begin to load what a report of these methods needs, in a thread: for seconds, in which the last runs train."""
    names = ["tune_stn.study.figures", "tune_stn.study.plots"]
    if SAMPLED in methods and find_spec("optuna") is not None:
        names.append("optuna.importance")
    Thread(target=lambda: [import_module(name) for name in names], daemon=True).start()


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(files("tune_stn.study").joinpath("report.html").read_text("utf-8"))


def _headline(results: Results) -> list[str]:
    """What came out, in a sentence or two."""
    means = last_of_each_run(results.incumbent).groupby("method")["best_val_loss"].agg(["mean", "count"])
    if means.empty:
        return ["No run has a finite validation loss."]
    ordered = means.sort_values("mean", kind="stable")
    best = ordered.iloc[0]
    seeds = f"{best['count']:.0f} seed" + ("" if best["count"] == 1 else "s")
    sentences = [f"{ordered.index[0]} has the lowest mean best validation loss: {best['mean']:.4g} over {seeds}."]
    if len(ordered) > 1:
        sentences.append(f"Next is {ordered.index[1]} with {ordered['mean'].iloc[1]:.4g}.")
    kept = results.controls.set_index("control")["share"].get("replayed", float("nan"))
    if kept == kept:
        sentences.append(f"A plain network with the schedule of auto replayed keeps {100 * kept:.0f} % of auto's gain.")
    return sentences


def _summary(results: Results) -> list[dict[str, str]]:
    """The summary as in the terminal, with the task's metrics at the best validation loss beside the losses."""
    from tune_stn.study.figures import with_metrics

    found = with_metrics(results)
    metrics = [name for name in found.columns if name not in results.incumbent.columns]
    means = last_of_each_run(found).groupby("method")[metrics].mean()
    rows = []
    for row in summary_cells(summary(results)):
        cells = list(row.items())
        place = 1 + list(row).index("its test loss")
        of_method: Any = means.loc[row["method"]] if row["method"] in means.index else {}
        beside = [(name, f"{of_method[name]:.4g}" if name in of_method else "-") for name in metrics]
        rows.append(dict([*cells[:place], *beside, *cells[place:]]))
    return rows


def _control_bars(results: Results) -> list[tuple[str, float, str]]:
    """Control, its share of the gain in percent between 0 and 100, and the share as text."""
    there = results.controls.dropna(subset=["share"]).to_dict("records")
    return [(row["control"], 100 * min(max(row["share"], 0), 1), f"{100 * row['share']:.0f} %") for row in there]


def _importance(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A block for each method and measure, one for both of Optuna's: a title, headings, and rows of (percent, text)."""
    blocks = []
    for method, of_method in frame.groupby("method", sort=False):
        sampled = method == SAMPLED
        measures = [("Optuna's evaluators", of_method)] if sampled else list(of_method.groupby("measure", sort=False))
        for measure, rows in measures:
            table = rows.pivot_table(
                index="hp", columns="measure" if sampled else "part", values="importance", sort=False
            )
            if not sampled and WHOLE not in table:
                continue
            order = table[table.columns[0] if sampled else WHOLE].sort_values(ascending=False, kind="stable")
            table = table.loc[order.index]
            kept = list(table) if sampled else [part for part in range(PARTS + 1) if part in table]
            block: dict[str, Any] = {
                "title": f"{method}: {measure}",
                "together": method if method in ONE_STEP_FOR_ALL else "",
            }
            block["counted"] = f"{rows['n'].max()} " + ("trials" if sampled else "runs")
            block["headings"] = kept if sampled else ["whole" if part == WHOLE else f"Q{part}" for part in kept]
            block["rows"] = list(zip(table.index, map(_percents, table[kept].to_numpy()), strict=True))
            blocks.append(block)
    return blocks


def _percents(shares: Iterable[float]) -> list[tuple[float, str]]:
    return [(100 * share, f"{100 * share:.0f} %") if share == share else (0.0, "-") for share in shares]


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
    domains = read_domains(study)
    for key, value in study.items():
        if key == "domains":
            rows[key] = "\n".join(f"{name}: {domain.describe()}" for name, domain in domains.items())
        elif isinstance(value, dict) and key not in SHOWN:
            rows[key] = "\n".join(f"{name}: {_plain(entry)}" for name, entry in value.items())
        elif key not in SHOWN:
            rows[key] = _plain(value)
    return rows


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
