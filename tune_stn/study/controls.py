"""What the gain of self-tuning over the start values is made of: how much of it the controls have too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tune_stn.study.incumbent import last_of_each_run

# Names, not methods: whoever only reads a study need not wait for Ray and Optuna. A test compares them with METHODS.
START, CONTROLLED = "fixed", "auto"
CONTROLS: Mapping[str, str] = {
    "replayed": "its schedule on a plain network: what is kept is tuning",
    "last-values": "its last values from the start: what is missing is the schedule's",
    "frozen": "the same without hyper-steps: not tuning",
    "progress-ratio": "one number, no response: how much regularisation, not which",
}
"""Control of `auto` -> what its share of the gain says, in the order of tables."""
FOLLOWED: Mapping[str, str] = {"replayed": CONTROLLED, "last-values": CONTROLLED}
"""Method -> the one whose run its own is made from."""
WITHOUT_CONTROLS = ("stn", "delta-stn", "stn-population")
MOST_FROZEN = 0.2  # share of a gain above which it may not be called one of tuning without a warning
ROUNDING = 1e-6  # of a loss in float32, as a share of it

COLUMNS = ["task", "method", "control", "n", "better", "gain", "control_gain", "share"]


def control_shares(incumbent: pd.DataFrame) -> pd.DataFrame:
    """How much of the gain in best validation loss over the start values each control has.

    A gain is the final best validation loss of `fixed` minus that of the method, at the same seed. A row is over the
    seeds at which `fixed`, the method and the control all have a value; its share is a ratio of means, as a mean of
    ratios would be ruled by the seed at which there was least to gain.

    Args:
        incumbent: The `incumbent` table of a study.

    Returns:
        A row for each task and control of `auto` that is there, with the columns `task`; `method`, always `auto`;
        `control`; `n`, the number of seeds; `better`, at how many of them the method has a lower loss than `fixed`;
        `gain` and `control_gain`, the mean gain of the method and of the control, in units of the loss; `share`, the
        second over the first, NaN where the first is not above 0 by more than rounding.
    """
    rows = []
    for task, final in last_of_each_run(incumbent).groupby("task", sort=False):
        losses = final.pivot(index="seed", columns="method", values="best_val_loss")
        for control in (name for name in CONTROLS if {START, CONTROLLED, name} <= set(losses)):
            there = losses[[START, CONTROLLED, control]].dropna()
            gains, others = there[START] - there[CONTROLLED], there[START] - there[control]
            gain, other = gains.mean(), others.mean()
            rows.append(
                {"task": task, "method": CONTROLLED, "control": control, "n": len(there), "better": (gains > 0).sum()}
                | {
                    "gain": gain,
                    "control_gain": other,
                    "share": other / gain if _is_gain(there.mean(), CONTROLLED) else np.nan,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def control_cells(shares: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of `control_shares` as text for people: heading -> cell, the same for the terminal and the report."""
    return [
        {
            "method": row["method"],
            "control": row["control"],
            "gain": _number(row["gain"]),
            "positive at": f"{row['better']} of {_seeds(row['n'])}",
            "control's gain": _number(row["control_gain"]),
            "share": "-" if np.isnan(row["share"]) else f"{row['share']:.0%}".replace("%", " %"),
            "what it is": CONTROLS[row["control"]],
        }
        for row in shares.to_dict("records")
    ]


def control_words(study: Mapping[str, Any], incumbent: pd.DataFrame) -> list[str]:
    """What has to be said beside these shares, a sentence each: warnings, and which controls a study lacks.

    Args:
        study: The study's `study.json`, of which `task`, `methods` and `budget` are read; without a budget it compares
            nothing.
        incumbent: The study's `incumbent` table.
    """
    asked = study["methods"]
    tuning = [name for name in (CONTROLLED, *WITHOUT_CONTROLS) if name in asked]
    if not tuning or study.get("budget") is None:
        return []
    words = []
    if START not in asked:
        words.append(
            f"what {_and(tuning)} gained over the start values is unknown here: add {START} to the methods and resume "
            "the study"
        )
    final = last_of_each_run(incumbent[incumbent["task"] == study["task"]])
    losses = final.pivot(index="seed", columns="method", values="best_val_loss")
    for method in (name for name in tuning if {START, name} <= set(losses)):
        there = losses[[START, method]].dropna()
        mean = there.mean()
        if len(there) and not _is_gain(mean, method):
            words.append(
                f"{method} gained nothing over the start values: mean best validation loss {mean[method]:.4g}, that of "
                f"{START} {mean[START]:.4g} ({_seeds(len(there))}); so there is no gain to have a share of"
            )
    shares = control_shares(incumbent)
    for row in shares[(shares["task"] == study["task"]) & (shares["control"] == "frozen")].to_dict("records"):
        if row["share"] > MOST_FROZEN:
            words.append(
                f"warning: {row['share']:.0%} of the gain of {row['method']} over the start values is there without "
                f"any tuning (frozen, {_seeds(row['n'])}); it comes from the response or the noise".replace("%", " %")
            )
    missing = [name for name in CONTROLS if name not in asked]
    if CONTROLLED in tuning and missing:
        words.append(
            f"how much of the gain of {CONTROLLED} is tuning needs its controls: add {','.join(missing)} to the "
            "methods and resume the study"
        )
    if others := [name for name in tuning if name in WITHOUT_CONTROLS]:
        words.append(
            f"{_and(others)}: no controls of their own in a study, so nothing here says how much of their gain is "
            f"tuning; {_and([*CONTROLS])} are controls of {CONTROLLED}"
        )
    return words


def _is_gain(losses: pd.Series, method: str) -> bool:
    """Whether a method's mean loss is below that of the start values by more than rounding."""
    return bool(losses[START] - losses[method] > ROUNDING * abs(losses[START]))


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.4g}"


def _seeds(count: int) -> str:
    return f"{count} seed" + ("" if count == 1 else "s")


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
