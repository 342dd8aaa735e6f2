"""The report of a study that runs, written again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tune_stn.study.collect import is_behind
from tune_stn.study.report import write_report
from tune_stn.study.results import Results, load_results
from tune_stn.study.seal import DONE
from tune_stn.study.state import SPARE_FILE

AFTER_END_S = 3.0  # in which a study that has ended writes its own page, and its remarks


def watch(
    directory: Path, every_s: float, say: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
) -> Results:
    """Write a study's report until the study has ended: once all of its runs have, or it was interrupted.

    Of one that was killed nothing says so; it is watched on.

    Args:
        directory: Directory of the study.
        every_s: Seconds between one page and the next.
        say: Called with a line for each page.
        sleep: Called with the seconds to wait. Default `time.sleep`.

    Returns:
        The results of the last page.

    Raises:
        NotADirectoryError, FileNotFoundError, ValueError: As `load_results`.
    """
    had_ended = True  # then one page is enough
    while True:
        ended = not is_running(directory)
        results = load_results(directory)
        page = write_report(results)
        done = len(list(directory.glob(f"state/*/{DONE}")))
        runs = len(results.study["methods"]) * len(results.study["seeds"])
        of_runs = f"{done} of {runs} runs have ended, " if (directory / "state").is_dir() else ""
        say(f"{time.strftime('%H:%M:%S')} {page}: {of_runs}{len(results.reports)} reports")
        if ended and had_ended:
            return results
        had_ended = ended
        sleep(min(every_s, AFTER_END_S) if ended else every_s)


def is_running(directory: Path) -> bool:
    """Whether a study, or the run of a recorder, runs, as far as its files say: one that was killed seems to."""
    if (directory / SPARE_FILE).exists() or is_behind(directory):
        return True
    results = load_results(directory)
    if "recorder" not in results.study:
        return False
    last = results.reports.groupby("trial_id")["status"].last()
    return bool((last == "running").any())
