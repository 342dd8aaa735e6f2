"""The comparison: every method on one task, at equal cost and paired seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import ray

from tune_stn.methods import Method
from tune_stn.study.arguments import check_comparison
from tune_stn.study.begun import begun_with
from tune_stn.study.checks import check_owner, check_same_study, make_directory
from tune_stn.study.collect import outdate, write_tables
from tune_stn.study.description import describe, describe_cluster, missing, outcome
from tune_stn.study.locks import only_study
from tune_stn.study.mend import Mending, mending
from tune_stn.study.prepare import Prepared, prepare
from tune_stn.study.progress import Progress
from tune_stn.study.remarks import after, conversion_words
from tune_stn.study.report import load_libraries, write_report
from tune_stn.study.results import Results, load_results
from tune_stn.study.run import Interrupted, Run, unfit_state
from tune_stn.study.side_by_side import Waiting, run_side_by_side
from tune_stn.study.state import SPARE_FILE, state_folder
from tune_stn.study.trust import check_sealed, goes_on
from tune_stn.tasks.task import Task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.ground import GroundLost, naming_a_lost_disk
from tune_stn.tuning.recording.directory import write_study
from tune_stn.tuning.signature import NoKey, own_key

Say = Callable[[str], None]
SPARE = 2**18  # bytes that a study keeps free to be able to say that its disk is full


def print_line(line: str) -> None:
    """Print a line that is seen at once, where output is kept back as well."""
    print(line, flush=True)


def compare(
    task: str | Task,
    methods: Sequence[str],
    *,
    budget: float,
    seeds: int | Sequence[int],
    out: str | Path,
    resume: bool = False,
    retry_failed: bool = False,
    settings: Mapping[str, Any] | None = None,
    cluster: Cluster | None = None,
    slots_per_run: int = 1,
    rehearsal: bool = True,
    say: Say | None = print_line,
) -> Results:
    """Give every method the same budget on a task, at every seed, and write the study's directory.

    Every method sees the same model, initial weights, splits and data order at a seed, tries the task's start values
    first, and is cut off when its trials together have spent the budget.

    Args:
        task: A built-in name, `module:attribute`, or a `Task`.
        methods: Names of methods; each is run at each seed. Runs go side by side, as many as the cluster has room for:
            all methods at a seed before the next seed, and near the end the longest first. Those that are made from the
            run of another method (`replayed`, `last-values`) begin when that has ended.
        budget: Cost of each run, in plain-epoch equivalents.
        seeds: Number of seeds (0, 1, ...), or the seeds themselves.
        out: Directory of the study; must be new, or hold this study if `resume`.
        resume: Whether to skip finished runs and go on with the one that was cut off; a run that ended without a
            result, or was given up, is run again. Default False.
        retry_failed: Whether `resume` also runs the failed trials of other runs again, from their last checkpoints,
            where there is budget left. Default False.
        settings: Settings of the task and its training, by name. Default none.
        cluster: Where to run. Default a local Ray.
        slots_per_run: Number of trials at a time of each run, on any cluster: part of the study, for the results of
            methods whose trials compete depend on it. Default 1, with which they are the same each time.
        rehearsal: Whether each kind of step is done once on a few examples, on this machine's CPU, before Ray starts.
            Default True; False for a task that needs a GPU or more memory than is here.
        say: Function called with lines of progress; None for silence. Default: they are printed.

    Returns:
        The study's results, also on disk.

    Raises:
        ValueError: an argument is not accepted, or the rehearsal failed; nothing was started. Of an exception that code
            of the task's own raised, it is an `OwnCodeError`, with that exception as its cause.
        GroundLost: the study's files could not be written, or Ray is gone; the directory can be resumed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the directory can be resumed.
    """
    chosen, wanted = check_comparison(methods, budget, seeds)
    return run_study(
        task,
        chosen,
        seeds=wanted,
        budget=budget,
        trials=None,
        out=Path(out),
        resume=resume,
        retry_failed=retry_failed,
        settings=settings or {},
        cluster=cluster or Cluster(),
        slots_per_run=slots_per_run,
        rehearsal=rehearsal,
        say=say or (lambda line: None),
    )


def run_study(
    task: str | Task,
    methods: Sequence[Method],
    *,
    seeds: Sequence[int],
    budget: float,
    trials: int | None,
    out: Path,
    resume: bool,
    settings: Mapping[str, Any],
    cluster: Cluster,
    say: Say,
    slots_per_run: int = 1,
    rehearsal: bool = True,
    retry_failed: bool = False,
) -> Results:
    """Run all (method, seed) pairs and write tables and report; the common core of `compare` and `tune-stn run`.

    Arguments are those of `compare`, checked; `trials` is the number of trials of each run where the budget is
    infinite.
    """
    prepared = prepare(
        task,
        methods,
        seeds=seeds,
        budget=budget,
        trials=trials,
        out=out,
        resume=resume,
        settings=settings,
        cluster=cluster,
        slots_per_run=slots_per_run,
        rehearsal=rehearsal,
        retry_failed=retry_failed,
    )
    return run_prepared(prepared, say)


def run_prepared(prepared: Prepared, say: Say, show: Callable[[Progress], None] | None = None) -> Results:
    """Run a study of which everything is checked, as `run_study` does; `show` is as for `Progress`.

    No other study may run in its directory.
    """
    make_directory(prepared.out)
    with naming_a_lost_disk(prepared.out), only_study(prepared.out):
        return _run_alone(prepared, say, show)


def _run_alone(prepared: Prepared, say: Say, show: Callable[[Progress], None] | None) -> Results:
    task, out, resume, retry_failed = prepared.given, prepared.out, prepared.resume, prepared.retry_failed
    resolved, methods, seeds, settings = prepared.task, prepared.methods, prepared.seeds, prepared.settings
    budget, trials, cluster, storage = prepared.budget, prepared.trials, prepared.cluster, prepared.storage
    conversion, remarks = prepared.conversion, prepared.remarks
    given = task if isinstance(task, str) else None
    study: dict[str, Any] = describe(resolved, given, methods, seeds, budget, trials, settings)
    study |= {"slots_per_run": prepared.slots_per_run, "conversion": conversion, "remarks": list(remarks)}
    if lost := check_same_study(out, study, resume):
        say(f"{lost}: written anew, for its runs were begun by these very arguments")
    if resume:
        check_owner(out, storage if cluster.storage_path else None)
    of_trials = _from_here(settings, cluster)
    config = {"task": task, "keep_best": True, **of_trials}
    runs: list[Run] = []
    for seed in seeds:  # all methods at a seed before the next seed: an unfinished study is still a comparison
        at_seed: dict[str | None, Run] = {}
        for method in prepared.ordered:
            at_seed[method.name] = Run(
                task=resolved,
                config=config,
                method=method,
                seed=seed,
                budget=budget,
                trials=trials,
                folder=state_folder(out, method.name, seed),
                followed=at_seed.get(method.follows),
                begun=begun_with(study, method.name, seed),
            )
        runs.extend(at_seed.values())
    key = _key(resume, say)
    if resume and key is not None:
        check_sealed(runs, cluster, key, retry_failed=retry_failed)
    if not resume:  # or it was said before
        for algorithm, words in conversion_words(conversion).items() if len(methods) == 1 else ():
            say(f"the network under {algorithm}:\n{indent(words, '  ')}")
        for remark in remarks:
            say(f"note: {remark}")
    if not ray.is_initialized():
        say("starting Ray" if cluster.address is None else f"connecting to Ray at {cluster.address}")
    with ExitStack() as session:
        session.enter_context(cluster.session())
        study["cluster"] = describe_cluster(cluster)
        cluster.check(storage, task, of_trials, seed=seeds[0])
        study["missing"] = missing(runs)  # so it says should this process be killed
        write_study(out, study)
        outdate(out)
        stopped = ""
        try:
            with session.pop_all():  # Ray ends before the tables are written, which does not need it
                stopped = _run_all(
                    runs,
                    out,
                    cluster,
                    Progress(say, total=len(runs), show=show),
                    slots=prepared.slots_per_run,
                    settings=of_trials,
                    costs=prepared.costs,
                    retry_failed=retry_failed,
                    key=key,
                )
        except Interrupted:
            raise KeyboardInterrupt from None
        except GroundLost as error:
            stopped = f"{error}; "
            raise
        finally:
            study |= outcome(runs, stopped)
            write_study(out, study)
            write_tables(resolved, runs, out)
    results = load_results(out)
    for remark in after(resolved.space, results.reports, results.incumbent):
        say(f"note: {remark}")
        results.study["remarks"].append(remark)
    write_study(out, results.study)
    write_report(results)
    return results


def _run_all(
    runs: Sequence[Run],
    out: Path,
    cluster: Cluster,
    progress: Progress,
    *,
    slots: int,
    settings: Mapping[str, Any],
    costs: Mapping[str, float],
    retry_failed: bool,
    key: bytes | None,
) -> str:
    """Run what has not ended, and what is to be mended; why runs were not gone on with, or nothing."""
    waiting = _waiting(runs, progress, cluster, costs=costs, retry_failed=retry_failed, key=key)
    spare = out / SPARE_FILE
    spare.write_bytes(bytes(SPARE))
    try:
        with naming_a_lost_disk(out):
            return run_side_by_side(
                waiting,
                cluster=cluster,
                slots=slots,
                task=runs[0].config["task"],
                settings=settings,
                progress=progress,
                retry_failed=retry_failed,
                key=key,
                when_idle=partial(load_libraries, {run.method.name for run in runs}),
            )
    finally:
        spare.unlink(missing_ok=True)


def _waiting(
    runs: Sequence[Run],
    progress: Progress,
    cluster: Cluster,
    *,
    costs: Mapping[str, float],
    retry_failed: bool,
    key: bytes | None,
) -> list[Waiting]:
    """The runs that are to begin or go on, and how; the others are said to be skipped."""
    waiting: list[Waiting] = []
    for run in runs:
        again = mending(run, retry_failed=retry_failed, taken_up=[one.run for one in waiting])
        if key is not None and goes_on(run, again) and (unfit := unfit_state(run, cluster, key)):
            again = Mending(f"Ray Tune's state of it is damaged ({unfit})", anew=True)
        if run.done is not None and again is None:
            progress.skipped(run)
        else:
            waiting.append(Waiting(run, again, costs[run.method.name]))
    return waiting


def _key(resume: bool, say: Say) -> bytes | None:
    """The user's key. A new study goes on without one, and says what that means.

    Raises:
        ValueError: There is none to resume with.
    """
    try:
        return own_key()
    except NoKey as error:
        if resume:
            raise ValueError(f"resume=True: {error}") from None
        say(f"note: what Ray Tune keeps of this study is not sealed, so resuming it will ask for trust: {error}")
        return None


def _from_here(settings: Mapping[str, Any], cluster: Cluster) -> dict[str, Any]:
    """The settings as trials get them: their current directory may be another one, where `data_dir` would lead astray.

    With a working directory that is sent to all nodes, a relative path means a place in it.
    """
    folder = settings.get("data_dir")
    if cluster.working_dir is not None or not isinstance(folder, (str, Path)):
        return dict(settings)
    return {**settings, "data_dir": str(Path(folder).expanduser().absolute())}
