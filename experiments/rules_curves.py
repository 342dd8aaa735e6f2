"""The picture of the update rules: validation loss against cost."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from rules_sections import Tables
from rules_verdicts import (
    relative_cost,
)


def draw(tables: Tables) -> Figure | None:
    """Mean validation loss against cost of plain, auto and its replayed schedule, one panel a setting.

    Args:
        tables: The runs of each setting.
    """
    shown = {}
    for name, table in tables.items():
        arms = {arm: set(table[table["arm"] == arm]["seed"]) for arm in ("plain", "auto", "auto/replayed")}
        seeds = arms["plain"] & arms["auto"]
        if seeds:
            shown[name] = (table, seeds, [arm for arm, has in arms.items() if seeds <= has])
    if not shown:
        return None
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(max(3.4 * columns, 4.5), 2.6 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    styles = {"plain": ("0.45", "-"), "auto": ("tab:blue", "-"), "auto/replayed": ("tab:orange", "--")}
    lines = {}
    for panel, (name, (table, seeds, arms)) in zip(axes, shown.items(), strict=False):
        tops, bottoms = [], []
        for arm in arms:
            runs = table[(table["arm"] == arm) & table["seed"].isin(seeds)]
            mean = mean_curve(list(runs["val_curve"]))
            cost = np.arange(1, len(mean) + 1) * relative_cost(runs, arm)
            colour, dashes = styles[arm]
            (lines[arm],) = panel.plot(cost, mean, dashes, color=colour, linewidth=1.4)
            finite = mean[np.isfinite(mean)]
            if len(finite):
                bottoms.append(finite.min())
                tops.append(np.median(finite) if len(finite) > 2 else finite.max())
        if bottoms:  # the first epochs are far above what is to be seen
            room = max(max(tops) - min(bottoms), 1e-3)
            panel.set_ylim(min(bottoms) - 0.15 * room, max(tops) + 1.2 * room)
        panel.set_title(f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in axes[len(shown) :]:
        panel.set_visible(False)
    figure.legend(list(lines.values()), list(lines), loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    figure.supxlabel("cost (plain epochs)", fontsize=9)
    figure.supylabel("validation loss", fontsize=9)
    return figure


def mean_curve(curves: list[np.ndarray]) -> np.ndarray:
    """The mean over runs at each epoch, up to the end of the shortest."""
    return np.mean([curve[: min(map(len, curves))] for curve in curves], axis=0)
