"""The command line: `tune-stn`."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NoReturn

import click

from tune_stn.command_words import in_options

# Heavy imports (torch, Ray) wait inside the commands, so that --help answers at once.

WATCH_EVERY_S = 30.0


class Command(click.Command):
    """A command whose user errors are one line and exit code 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _fail(error.format_message())

    def invoke(self, ctx: click.Context) -> Any:
        from tune_stn.tuning.ground import GroundLost, terminated_like_interrupted

        try:
            with terminated_like_interrupted():
                return super().invoke(ctx)
        except click.UsageError as error:
            _fail(error.format_message())
        except (ValueError, OSError) as error:
            from tune_stn.tasks.own_code import OwnCodeError, is_refusal

            if getattr(error, "errno", None) == errno.ENAMETOOLONG:  # of an option
                _fail(f"{error.strerror}: {str(error.filename)[:80]}...")  # type: ignore[union-attr]
            if not is_refusal(error):
                raise
            if isinstance(error, OwnCodeError):
                click.echo(error.trace, err=True, nl=False)
                _fail(str(error))
            _fail(_in_options(ctx, str(error)))
        except GroundLost as error:
            click.echo(f"tune-stn: {_in_options(ctx, str(error))}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            _end_interrupted(ctx)
        except SystemExit as error:
            if error.code != signal.SIGTERM:  # as Ray's own handler ends the process, from its import to its start
                raise
            _end_interrupted(ctx)


class Group(click.Group):
    """The commands; a wrong one is one line and exit code 2, too."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            _fail(f"{error.format_message()} Accepted are {', '.join(self.list_commands(ctx))}")


def _end_interrupted(ctx: click.Context) -> NoReturn:
    resumes = "resume" in ctx.params
    advice = "; the same command with --resume goes on from here" if resumes else ", and can be started again"
    click.echo(f"tune-stn: interrupted{advice}", err=True)
    sys.exit(130)


def _fail(message: str) -> NoReturn:
    click.echo(f"tune-stn: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _in_options(ctx: click.Context, message: str) -> str:
    """An error of the Python function behind a command, with that command's options for its arguments."""
    options = [option for option in ctx.command.params if isinstance(option, click.Option)]
    settings: Container[str] = ()
    if "settings" in ctx.params:
        settings = _SettingNames(ctx.params["task"])
    return in_options(
        message,
        {str(option.name): option.opts[0] for option in options},
        {str(option.name) for option in options if option.is_flag},
        settings,
    )


class _SettingNames:
    """The names of a task's settings, found out when asked for one, for that loads the task."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __contains__(self, name: object) -> bool:
        from tune_stn.tasks.registry import setting_names

        return name in setting_names(self.task)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tune_stn")
def main() -> None:
    """Self-Tuning Networks for Ray Tune: hyperparameters tuned by gradient inside one training run."""


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that runs trials."""
    options = [
        click.option("--task", required=True, help="A built-in task, or your own as module:attribute."),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the results."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a setting of the task."),
        click.option("--address", help="A running Ray cluster, host:port or auto; default: start a local Ray."),
        click.option("--cpus-per-trial", type=float, default=1, show_default=True),
        click.option("--gpus-per-trial", type=float, default=0, show_default=True, help="Fractions share a GPU."),
        click.option("--resources", multiple=True, metavar="NAME=AMOUNT", help="Custom resources of a trial, too."),
        click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only nodes with this Ray label."),
        click.option("--max-concurrent", type=int, help="Trials at a time in all; default: as many as fit."),
        click.option(
            "--slots-per-run",
            type=int,
            default=1,
            show_default=True,
            help="Trials at a time of each run, on any cluster. Runs go side by side.",
        ),
        click.option(
            "--storage-path",
            help="For Ray Tune's checkpoints: a folder or URI (s3://...) that all nodes share; default: inside --out.",
        ),
        click.option("--working-dir", help="With --address: a folder with your own modules, copied to every node."),
        click.option("--no-rehearsal", is_flag=True, help="Do not try each kind of step on this machine's CPU first."),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on with what was cut off, and run again what has no result or was given up.",
        ),
        click.option("--retry-failed", is_flag=True, help="With --resume: run failed trials of other runs again, too."),
        click.option("--quiet", is_flag=True, help="Say nothing but errors."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command(cls=Command)
def tasks() -> None:
    """List the built-in tasks."""
    from tune_stn.tasks.builtin import task_descriptions

    _list(task_descriptions())


@main.command(cls=Command)
def methods() -> None:
    """List the methods of a comparison."""
    from tune_stn.methods import METHODS

    _list({name: method.description for name, method in METHODS.items()})


@main.command(cls=Command)
@click.option("--algorithm", required=True, help="auto, stn, delta-stn, progress-ratio or fixed.")
@click.option("--trials", type=int, default=1, show_default=True, help="Later ones start near where earlier ended.")
@click.option("--epochs", type=int, help="Length of a trial; default: the task's.")
@click.option("--seed", type=int, default=0, show_default=True)
@_common
def run(algorithm: str, trials: int, epochs: int | None, seed: int, quiet: bool, **options: Any) -> None:
    """Train a task by one algorithm."""
    _protect(options)
    from tune_stn.methods import get_algorithm

    method = get_algorithm(algorithm)
    if trials < 1:
        raise ValueError(f"--trials {trials}: accepted is an integer of 1 or more")
    if algorithm == "fixed" and trials > 1:
        raise ValueError(f"--trials {trials}: fixed has 1, for another would be the same; --seed makes a different one")
    _run(_study_of_one(seed, epochs, options), [method], math.inf, trials, quiet)


@main.command(cls=Command)
@click.option("--methods", required=True, help="Comma-separated; see `tune-stn methods`.")
@click.option("--budget", required=True, type=float, help="Cost of each run, in plain-epoch equivalents.")
@click.option("--seeds", type=int, default=3, show_default=True, help="How many seeds.")
@_common
def compare(methods: str, budget: float, seeds: int, quiet: bool, **options: Any) -> None:
    """Compare methods on a task at equal cost."""
    _protect(options)
    from tune_stn.study.arguments import check_comparison

    names = [name.strip() for name in methods.split(",") if name.strip()]
    chosen, wanted = check_comparison(names, budget, seeds)
    _run(_study_arguments(options) | {"seeds": wanted}, chosen, budget, None, quiet)


@main.command(cls=Command)
@click.argument("schedule")
@click.option("--trial", "trial_id", help="Which trial's schedule, where the table holds several.")
@click.option("--per-epoch", is_flag=True, help="Change values only where an epoch begins.")
@click.option("--epochs", type=int, help="Length of the training; default: the task's.")
@click.option("--seed", type=int, default=0, show_default=True)
@_common
def replay(
    schedule: str, trial_id: str | None, per_epoch: bool, epochs: int | None, seed: int, quiet: bool, **options: Any
) -> None:
    """Train a task's plain network with the SCHEDULE (a Parquet file) of an earlier run."""
    _protect(options)
    study = _study_of_one(seed, epochs, options)
    from tune_stn.methods.replay import replay as replay_method
    from tune_stn.training.schedule import Schedule

    found = Schedule.from_parquet(schedule, trial_id=trial_id)
    method = replay_method(found.per_epoch() if per_epoch else found)
    _run(study, [method], math.inf, 1, quiet)


@main.command(cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--to", "out", required=True, type=click.Path(path_type=Path), help="Directory for the files.")
@click.option("--format", "file_format", default="parquet", show_default=True, help="parquet, csv or tensorboard.")
@click.option("--model", is_flag=True, help="The best run's model.safetensors and hyperparameters.json, no tables.")
@click.option("--method", help="With --model: of this method; default: the best of all.")
@click.option("--seed", type=int, help="With --model: of this seed; default: the best of all.")
@click.option("--task", help="With --model: module:attribute of the task, where the study was given an object.")
def export(
    directory: Path, out: Path, file_format: str, model: bool, method: str | None, seed: int | None, task: str | None
) -> None:
    """Export a study's tables, or its trained model."""
    from tune_stn.study.results import export_results, load_results
    from tune_stn.study.trained import export_model

    if model:
        results = load_results(directory)
        for path in export_model(results, out, method=method, seed=seed, task=task):
            click.echo(path)
        _say_missing(results)
        return
    if method is not None or seed is not None or task is not None:
        raise click.UsageError("--method, --seed and --task are for --model; tables are exported whole")
    results = load_results(directory)
    for path in export_results(results, out, file_format):
        click.echo(path)
    _say_missing(results)


@main.command(cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Write it again and again, until the study has ended or Ctrl-C.")
@click.option("--every", type=float, metavar="SECONDS", help="With --watch: from page to page; default: 30.")
def report(directory: Path, watch: bool, every: float | None) -> None:
    """Write a study's report.html and plots."""
    if every is not None and not watch:
        raise click.UsageError("--every is for --watch; without it the report is written once")
    if every is not None and not 0 < every < math.inf:
        raise ValueError(f"--every {every:g}: accepted is a number of seconds above 0")
    if watch:
        from tune_stn.study.watch import watch as watch_study

        _say_missing(watch_study(directory, every or WATCH_EVERY_S, click.echo))
        return
    from tune_stn.study.report import write_report
    from tune_stn.study.results import load_results

    results = load_results(directory)
    click.echo(write_report(results))
    _say_missing(results)


@main.command(cls=Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--storage-path", help="Where Ray Tune's state is, if the study was given another place for it.")
def trust(path: Path, storage_path: str | None) -> None:
    """Sign a study as yours, so that it can be resumed here.

    To resume is to run what Ray Tune's state in it says. Each is signed with a key of the user who ran it; this signs
    what is in PATH now with your own, be it that of another machine, an earlier version, or somebody whom you trust as
    you trust a program of theirs.
    """
    from tune_stn.study.trust import trust as trust_it

    for one in trust_it(path, storage_path):
        click.echo(f"signed: {one}")


@main.command(cls=Command)
@click.argument("name")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Folder; default: the user's cache.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def data(name: str, folder: Path | None, quiet: bool) -> None:
    """Fetch a data set, checksummed."""
    from tune_stn.data import cifar10, fashion_mnist, ptb

    sources = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}
    if name == "ptb":
        raise ValueError(f"Penn Treebank is not fetched: {ptb.HOW}")
    if name not in sources:
        accepted = ", ".join(sources)
        raise ValueError(
            f"unknown data set {name!r}; accepted are {accepted} (ridge, digits-mlp and the text tasks need none)"
        )
    click.echo(sources[name].fetch(folder, progress=not quiet))


def _protect(options: dict[str, Any]) -> None:
    """Before Ray is imported: a local one is nobody else's; a cluster has its own rules."""
    from tune_stn.tuning.token import protect

    if options["address"] is None:
        protect()


def _run(study: dict[str, Any], methods: list[Any], budget: float, trials: int | None, quiet: bool) -> None:
    """Run a study and show its results; what is refused is refused before Ray is loaded, if it can be."""
    from tune_stn.study.prepare import prepare

    prepared = prepare(methods=methods, budget=budget, trials=trials, **study)
    from tune_stn.study.compare import run_prepared

    if quiet or not _is_terminal():
        results = run_prepared(prepared, _say(quiet))
    else:
        from tune_stn.study.live import LiveTable

        with LiveTable() as table:
            results = run_prepared(prepared, table.say, table.show)
    _show(results, quiet)


def _study_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Common options in the terms of `run_study`, as far checked as is possible without torch."""
    from tune_stn.study.arguments import check_directory
    from tune_stn.tasks.builtin import check_task_name
    from tune_stn.tuning.cluster import Cluster

    check_task_name(options["task"])
    check_directory(options["out"], resume=options["resume"], retry_failed=options["retry_failed"])
    return {
        "task": options["task"],
        "out": options["out"],
        "resume": options["resume"],
        "rehearsal": not options["no_rehearsal"],
        "retry_failed": options["retry_failed"],
        "slots_per_run": options["slots_per_run"],
        "settings": dict(_setting(text) for text in options["settings"]),
        "cluster": Cluster(
            address=options["address"],
            cpus_per_trial=options["cpus_per_trial"],
            gpus_per_trial=options["gpus_per_trial"],
            resources=dict(_amount(text) for text in options["resources"]),
            labels=dict(_pair("--label", text, "zone=b") for text in options["labels"]),
            max_concurrent=options["max_concurrent"],
            storage_path=options["storage_path"],
            working_dir=options["working_dir"],
        ),
    }


def _study_of_one(seed: int, epochs: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """`_study_arguments` of a study at one seed, whose trials may have another length than the task's."""
    if seed < 0:
        raise ValueError(f"--seed {seed}: accepted is an integer of 0 or more")
    study = _study_arguments(options) | {"seeds": [seed]}
    if epochs is not None:
        study["settings"]["epochs"] = epochs
    return study


def _setting(text: str) -> tuple[str, Any]:
    """`key=value`, the value as JSON where it is JSON, else as text."""
    key, value = _pair("--set", text, "epochs=20")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):  # the latter of thousands of brackets
        return key, value


def _amount(text: str) -> tuple[str, float]:
    name, amount = _pair("--resources", text, "accelerator=1")
    try:
        return name, float(amount)
    except ValueError:
        _fail(f"--resources {text}: {amount!r} is no number")


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        _fail(f"{option} {text}: accepted is key=value, such as {example}")
    return key, value


def _is_terminal() -> bool:
    """Whether a table can be drawn anew on standard output."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else click.echo


def _show(results: Any, quiet: bool) -> None:
    """The table of a finished study, and where everything is; exit code 1 if a run has no result, or gave up."""
    if not quiet:
        _show_tables(results)
    for entry in results.study["missing"]:
        if entry["no_result"] or not quiet:
            reason = " ".join(entry["reason"].split())
            line = f"incomplete: {entry['method']}, seed {entry['seed']}: {reason}"
            click.echo(line, err=entry["no_result"])
    if any(entry["no_result"] for entry in results.study["missing"]):
        sys.exit(1)


def _show_tables(results: Any) -> None:
    from tune_stn.study.summary import format_controls, format_summary, summary

    click.echo()
    click.echo(format_summary(summary(results)))
    click.echo()
    if controls := format_controls(results):
        click.echo(f"{controls}\n")
    tables = ", ".join(f"{name}.parquet" for name in ("reports", "schedule", "incumbent"))
    click.echo(f"frames: {results.path}/{{{tables}}}")
    click.echo(f"plots:  {results.path}/plots")
    click.echo(f"report: {results.path}/report.html")


def _say_missing(results: Any) -> None:
    """What a study that is running or was cut off does not have yet, beside what its tables and report show.

    Exit code 1 if files of a finished run do not fit its seal.
    """
    for entry in results.study["missing"]:
        click.echo(f"incomplete: {entry['method']}, seed {entry['seed']}: {entry['reason']}", err=True)
    if unknown := results.study.get("not_sealed"):
        click.echo(
            f"not sealed: an earlier version wrote {', '.join(unknown)}, so damage there would not show", err=True
        )
    if any(entry.get("damaged") for entry in results.study["missing"]):
        sys.exit(1)


def _list(entries: dict[str, str]) -> None:
    width = max(map(len, entries))
    for name, description in entries.items():
        click.echo(f"{name:{width}}  {description}")
