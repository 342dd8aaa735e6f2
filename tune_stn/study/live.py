"""A table of the runs that go on, drawn anew in a terminal twice a second: a view of `Progress`."""

from __future__ import annotations

import math
import textwrap
import time
from pathlib import Path
from types import TracebackType
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tune_stn.study.progress import Going, Progress

WIDE = 100  # columns of a terminal from which there is room between the columns of the table
MARGIN = 3  # columns left free at the right, for the ^C that a terminal shows where the table ends
LEAST_VALUES = 12  # columns that hyperparameters are worth showing in
FRAME = 4  # lines beside those of runs: what is done, the headings, "and 38 more", and the prompt's own
HEADINGS = ("method", "seed", "trials", "", "cost", "best", "left")  # without one: the bar


class LiveTable:
    """Shows a `Progress` below the lines that it says, which scroll away above the table.

    No thread draws: the table is as old as the last call of `show`.

    Args:
        console: A console of rich, on a terminal. Default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        self._began = time.monotonic()
        # By run: the share of it that was done when it was first seen, and when.
        self._first: dict[Path, tuple[float, float]] = {}

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """Draw the table anew."""
        if self._live is None:
            self._live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stderr=self.console.is_terminal and Console(stderr=True).is_terminal,
            )
            self._live.start()
            self.console.show_cursor(True)  # who kills the study has a cursor, too
        self._live.update(self.table(progress), refresh=True)

    def table(self, progress: Progress) -> Group:
        """The table as it is now, no larger than the terminal."""
        going = list(progress.going.values())
        shares = {one.run.folder: share_done(one) for one in going}
        lefts = {one.run.folder: self._seconds_left(one, shares[one.run.folder]) for one in going}
        room = max(1, self.console.height - FRAME)
        ends = sorted(going, key=lambda one: (_or_inf(lefts[one.run.folder]), -shares[one.run.folder]))
        shown = {one.run.folder for one in ends[:room]}  # in the order of their beginning: rows that jump are not read
        rows = [one for one in going if one.run.folder in shown]
        parts: list[Table | Text] = [_head(progress, time.monotonic() - self._began)]
        if rows:
            parts.append(self._rows(rows, shares, lefts, lines=room // len(rows)))
        if len(going) > len(rows):
            parts.append(Text(f"and {len(going) - len(rows)} more", style="dim"))
        return Group(*parts)

    def _rows(
        self, rows: list[Going], shares: dict[Path, float], lefts: dict[Path, float | None], *, lines: int
    ) -> Table:
        """Runs, a row each, whose hyperparameters may take so many lines where they do not fit into one."""
        width, wide = self.console.width - MARGIN, self.console.width >= WIDE
        gap, bar = (2, 12) if wide else (1, 6)
        headings = [f"{name} val loss" if name == "best" and wide else name for name in HEADINGS]
        alike = len({one.limit for one in rows}) == 1  # said above
        cells = [_cells(one, lefts[one.run.folder], with_limit=not alike) for one in rows]
        widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
        widths[HEADINGS.index("")] = bar
        kept = _fitting(widths, gap, width)
        room = width - sum(widths[at] + gap for at in kept)
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim", collapse_padding=True)
        for at in kept:
            side: Literal["left", "right"] = "left" if HEADINGS[at] in ("method", "") else "right"
            table.add_column(headings[at], width=widths[at], no_wrap=True, justify=side)
        with_values = room >= LEAST_VALUES
        if with_values:
            cut: Literal["ellipsis", "crop"] = "ellipsis" if self.console.encoding.startswith("utf") else "crop"
            table.add_column("hyperparameters now", width=room, no_wrap=True, overflow=cut)
        for one, texts in zip(rows, cells, strict=True):
            share = ProgressBar(total=1.0, completed=shares[one.run.folder], width=bar)
            row: list[str | ProgressBar] = [texts[at] if HEADINGS[at] else share for at in kept]
            if with_values:
                row.append(_within(_values(one), room, lines))
            table.add_row(*row, style="dim" if one.heard is None else "")
        return table

    def _seconds_left(self, going: Going, share: float) -> float | None:
        """Until a run ends, as fast as it has gone since it was first seen here; None while that is not known."""
        if going.heard is None:
            if going.latest:  # of an execution before
                self._first.setdefault(going.run.folder, (share, going.latest["wall_time_s"]))
            return None
        wall: float = going.latest["wall_time_s"]
        first_share, first_wall = self._first.setdefault(going.run.folder, (share, wall))
        done, took = share - first_share, wall - first_wall
        if done <= 0 or took <= 0:  # its first report: with the time that its start took
            done, took = share, going.heard - going.began
        if done <= 0 or took <= 0:
            return None
        return max(0.0, (1 - share) * took / done - (time.monotonic() - going.heard))


def share_done(going: Going) -> float:
    """How much of a run is done, between 0 and 1: of its budget, or of the epochs of its trials where those count."""
    run = going.run
    if run.trials is not None:
        return min(1.0, sum(going.epochs.values()) / (run.trials * run.task.training.epochs))
    return min(1.0, max(0.0, 1 - (going.limit - going.cost_total) / run.budget))


def _head(progress: Progress, seconds: float) -> Text:
    going = len(progress.going)
    starting = sum(one.heard is None for one in progress.going.values())
    parts = [
        f"{progress.count - going} of {progress.total} runs done",
        f"{going} going" + (f" ({starting} starting)" if starting else ""),
        f"{progress.total - progress.count} waiting",
        clock(seconds),
    ]
    limits = {one.limit for one in progress.going.values()}
    if len(limits) == 1 and math.isfinite(limit := limits.pop()):
        parts.insert(-1, f"budget {limit:g} each")
    return Text(", ".join(parts), style="bold", no_wrap=True, overflow="crop")


def _cells(going: Going, left: float | None, *, with_limit: bool) -> tuple[str, ...]:
    """What a row says under `HEADINGS`, but for its bar."""
    run = going.run
    of_trials = f"/{run.trials}" if run.trials is not None else ""
    of_cost = f"/{going.limit:.0f}" if with_limit and math.isfinite(going.limit) else ""
    best = f"{going.best:.4f}" if math.isfinite(going.best) else ""
    ends = "starts" if going.heard is None else clock(left) if left is not None else ""
    spent = f"{going.cost_total:.0f}{of_cost}"
    return run.method.name, str(run.seed), f"{len(going.trials)}{of_trials}", "", spent, best, ends


def _fitting(widths: list[int], gap: int, width: int) -> list[int]:
    """The columns of `HEADINGS` that a terminal has room for."""
    kept = list(range(len(HEADINGS)))
    for name in ("trials", "", "cost", "left"):
        if sum(widths[at] + gap for at in kept) > width:
            kept.remove(HEADINGS.index(name))
    return kept


def _values(going: Going) -> str:
    """The hyperparameters of the newest report, as short as two digits go."""
    found = {name.removeprefix("hp/"): value for name, value in going.latest.items() if name.startswith("hp/")}
    return " ".join(f"{name}={value:.2g}".replace("e-0", "e-") for name, value in found.items())


def _within(text: str, width: int, lines: int) -> str:
    """A text in so many lines; one line is cut by the table."""
    if lines == 1:
        return text
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ...", break_on_hyphens=False))


def clock(seconds: float) -> str:
    """A duration for the eye: 0:42, 12:05, 3:10:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _or_inf(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
