"""Whose pickles a resumed study loads: those that carry a signature of this user's, see `tuning.signature`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tune_stn.study.mend import Mending, mending
from tune_stn.study.run import Run, unfit_state
from tune_stn.study.state import known_name
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.search import seal_inner
from tune_stn.tuning.signature import SEALS, NotSealed, own_key, seal_state
from tune_stn.tuning.storage import open_storage


def goes_on(run: Run, again: Mending | None) -> bool:
    """Whether Ray Tune would load its state of a run, which has not ended or is taken up again as said."""
    return (run.done is None) if again is None else not again.anew


def check_sealed(runs: Iterable[Run], cluster: Cluster, key: bytes, *, retry_failed: bool) -> None:
    """Refuse to resume a study where Ray Tune would load what this user has not signed.

    Raises:
        ValueError: It would; the message says what to do.
    """
    for run in runs:
        if goes_on(run, mending(run, retry_failed=retry_failed)):
            try:
                unfit_state(run, cluster, key)
            except NotSealed as error:
                study = run.folder.parents[1]
                raise ValueError(
                    f"resume=True: {error}. If you wrote it yourself (on another machine, or with an earlier version), "
                    f"`tune-stn trust {study}` says so; if not, remove {run.folder}, and its run begins anew. Finished "
                    "runs, tables and trained models are read without that"
                ) from None


def trust(path: Path, storage_path: str | None = None) -> list[Path]:
    """Sign the pickles of a study, or of a searcher, as this user's: they are run, as a program would be, on resume.

    Args:
        path: Directory of a study; or of an experiment of Ray Tune's with an `STNSearch`; or the saved state of one.
        storage_path: Where Ray Tune's state is, if it is elsewhere, as the study was given it. Default None.

    Returns:
        What was signed: state folders of runs, and states of searchers.

    Raises:
        ValueError: There is nothing of that kind, or no key.
    """
    searchers = [path] if path.is_file() else sorted(path.rglob("searcher-state-*"))
    signed = [one for one in searchers if seal_inner(one)]
    key = own_key()
    for folder in sorted(path.glob("state/*/")):
        name = known_name(folder)
        if name and seal_state(folder / SEALS, open_storage(storage_path or str(folder / "tune")), name, key):
            signed.append(folder)
    if not signed:
        raise ValueError(
            f"{path}: no state of Ray Tune's is there, of a study or of an STNSearch with a searcher inside"
        )
    return signed
