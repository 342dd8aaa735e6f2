"""What a resumed study does with a run that has ended: a run without a result, or with failed trials, is mended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tune_stn.study.run import Run
from tune_stn.study.seal import why_unfit
from tune_stn.study.state import has_result


@dataclass(frozen=True)
class Mending:
    """How an ended run is taken up again.

    Attributes:
        why: Reason in words.
        anew: Whether from the beginning; else it goes on, its failed trials from their last checkpoints.
    """

    why: str
    anew: bool


def mending(run: Run, *, retry_failed: bool, taken_up: Collection[Run] = ()) -> Mending | None:
    """How an ended run is taken up again; None where it is not.

    Args:
        run: A run with a closing record.
        retry_failed: Whether the failed trials of a run that has a result are run again.
        taken_up: The runs that this study has run now: what follows one of them is made from it anew.
    """
    record = run.done
    if record is None:
        return None
    if unfit := why_unfit(run.folder):
        return Mending(f"its files do not fit its seal ({unfit})", anew=True)
    if any(run.followed is one for one in taken_up):
        return Mending("the run that it is made from was taken up again", anew=True)
    if not has_result(run.folder):
        return Mending("it had no result", anew=True)
    if record["hopeless"]:  # Tune has stopped its other trials and its searcher, and keeps them so
        return Mending("it had been given up", anew=True)
    if record["failures"] and retry_failed and record["cost_total"] < run.limit:
        return Mending(f"{len(record['failures'])} of its trials had failed", anew=not run.method.restores)
    return None
