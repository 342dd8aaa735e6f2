"""The readers under test: for each, a sound input, how it is damaged, and how it is read."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pandas as pd
import ray
import torch
from click.testing import CliRunner
from ray import tune

import tune_stn.cli
import tune_stn.study.compare
import tune_stn.study.report
from tune_stn.data import cifar10, fashion_mnist, ptb
from tune_stn.data.corpus import read_words
from tune_stn.study.collect import read_state
from tune_stn.study.incumbent import best_so_far
from tune_stn.study.results import Results, export_results, load_results
from tune_stn.study.seal import write_done
from tune_stn.study.state import state_folder
from tune_stn.study.summary import summary
from tune_stn.tasks.registry import setting_names
from tune_stn.training.checkpoint import load_state, save_state
from tune_stn.training.schedule import Schedule
from tune_stn.training.tables import (
    INCUMBENT_SCHEMA,
    SCHEDULE_SCHEMA,
    STUDY_SCHEMA_VERSION,
    reports_schema,
    write_table,
)
from tune_stn.tuning.recording.tables import read_recorded, report_rows, schedule_rows
from tune_stn.tuning.search import STNSearch

Random = random.Random | None
"""None for the sound input."""


@dataclass(frozen=True)
class Reader:
    """A reader and its inputs.

    Attributes:
        write: makes the input of a draw, sound for None, and gives what `read` takes. Its second argument is the
            folder that a payload would make.
        read: gives something comparable, or raises.
        exact: whether a checksum, or what else the reader knows, tells every damage: no other result is right.
    """

    write: Callable[[Random, Path], Any]
    read: Callable[[Any], object]
    exact: bool = False


class Raw(Exception):
    """A command ended in another way than it should; the message says how."""


class Refused(ValueError):
    """A command was refused in one line."""


def _file(path: Path, sound: bytes, hostile: Callable[[Random, Path], bytes | None] = lambda rng, mark: None) -> Any:
    """Write one file, mostly damaged in some bytes; now and then hostile, or sparse and huge."""

    def write(rng: Random, mark: Path) -> Path:
        if rng is None:
            path.write_bytes(sound)
        elif rng.random() < 0.01:
            damage.sparse(path)
        elif rng.random() < 0.02 and (content := hostile(rng, mark)) is not None:
            path.write_bytes(content)
        else:
            path.write_bytes(damage.damaged_bytes(sound, rng))
        return path

    return write


def _digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        content = part.to_csv() if isinstance(part, pd.DataFrame) else part
        found.update(content if isinstance(content, bytes) else repr(content).encode("utf-8", "replace"))
    return found.hexdigest()


# Data sets ------------------------------------------------------------------------------------------------------------


def _fashion(folder: Path, *, zipped: bool) -> Reader:
    rng = np.random.default_rng(0)
    contents = {}
    for name in fashion_mnist.SHA256:
        shape = (7, 28, 28) if "images" in name else (7,)
        values = rng.integers(0, 256 if "images" in name else 10, shape, np.uint8)
        contents[name] = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()
    fashion_mnist.CONTENT_SHA256 = {  # type: ignore[attr-defined]
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    files = {}
    for name, content in contents.items():
        path = folder / (name if zipped else name.removesuffix(".gz"))
        files[path] = gzip.compress(content) if zipped else content
        path.write_bytes(files[path])
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 40 * 2**20, 28, 28)
    bomb = gzip.compress(header) + gzip.compress(bytes(2**22)) * 5000 if zipped else header + bytes(9)
    writes = {path: _file(path, content, lambda rng, mark: bomb) for path, content in files.items()}

    def write(rng: Random, mark: Path) -> Path:
        for path, content in files.items():
            path.write_bytes(content)
        if rng is not None:
            writes[rng.choice([*files])](rng, mark)
        return folder

    return Reader(
        write,
        lambda path: _digest(
            *(
                tensor.numpy().tobytes()
                for split in fashion_mnist.load(path)
                for tensor in (split.inputs, split.targets)
            )
        ),
        exact=True,
    )


def _cifar(folder: Path, *, pickled: bool) -> Reader:
    rng = np.random.default_rng(0)
    files, sums = {}, {}
    for name in cifar10.SHA256:
        labels, pixels = rng.integers(0, 10, 5, np.uint8), rng.integers(0, 256, (5, 3072), np.uint8)
        records = np.hstack([labels[:, None], pixels]).tobytes()
        sums[name] = hashlib.sha256(records).hexdigest()
        # As the official files: written by Python 2, whose texts are bytes.
        text = pixels.tobytes().decode("latin-1")
        as_pickle = pickle.dumps({"labels": labels.tolist(), "data": text}, protocol=2)
        files[folder / (name if pickled else f"{name}.bin")] = as_pickle if pickled else records
    cifar10.SHA256 = sums
    writes = {path: _file(path, content, lambda rng, mark: damage.payload(mark)) for path, content in files.items()}

    def write(rng: Random, mark: Path) -> Path:
        for path, content in files.items():
            path.write_bytes(content)
        if rng is not None:
            writes[rng.choice([*files])](rng, mark)
        return folder

    return Reader(
        write,
        lambda path: _digest(
            *(tensor.numpy().tobytes() for split in cifar10.load(path) for tensor in (split.inputs, split.targets))
        ),
        exact=True,
    )


WORDS = "".join(f" the {word} of <unk> and N \n" for word in ("cat", "dog", "café", "naïve", "sea") * 9)


def _ptb(folder: Path) -> Reader:
    content = WORDS.encode()
    ptb.SHA256 = dict.fromkeys(ptb.SPLITS, hashlib.sha256(content).hexdigest())
    for split in ptb.SPLITS:
        (folder / f"{split}.txt").write_bytes(content)
    write = _file(folder / "train.txt", content)
    return Reader(lambda rng, mark: write(rng, mark).parent, lambda path: _digest(ptb.load(path)), exact=True)


def _text(folder: Path) -> Reader:
    return Reader(_file(folder / "text.txt", WORDS.encode()), lambda path: _digest(read_words(path)))


# Schedules ------------------------------------------------------------------------------------------------------------


def _schedule() -> Schedule:
    times = np.arange(12) * 5
    values = np.random.default_rng(0).uniform(0.1, 0.9, (12, 3)).round(6)
    values[:, 2] = np.arange(12) // 4
    return Schedule(("rate", "decay", "holes"), times, values, integers=frozenset(["holes"]))


def _schedule_parquet(folder: Path) -> Reader:
    path = folder / "schedule.parquet"
    _schedule().to_parquet(path)
    return Reader(_file(path, path.read_bytes()), lambda path: Schedule.from_parquet(path)._key(), exact=True)


def _frames() -> list[pd.DataFrame]:
    long = _schedule().to_frame()
    study = _study_tables()["schedule"]
    whole = study[study["trial_id"] == "a"].reset_index(drop=True)
    wide = pd.DataFrame({"training_iteration": range(1, 7), "hp/rate": np.linspace(0.1, 0.6, 6), "hp/holes": range(6)})
    return [long, whole, wide, study]


def _schedule_frame(folder: Path) -> Reader:
    frames = _frames()

    def write(rng: Random, mark: Path) -> pd.DataFrame:
        return frames[0] if rng is None else damage.damaged_frame(rng.choice(frames), rng)

    def read(frame: pd.DataFrame) -> object:
        found = Schedule.from_frame(
            frame, trial_id="b" if {*map(str, frame.get("trial_id", ()))} >= {"a", "b"} else None
        )
        assert all(isinstance(name, str) and name for name in found.names), found.names
        assert np.isfinite(found.values).all(), found.values
        assert (found.times >= 0).all(), found.times
        if {"hp", "value"} <= {*map(str, frame.columns)}:
            for name, column in zip(found.names, found.values.T, strict=True):
                assert {*column} <= {float(v) for v in frame["value"][frame["hp"] == name]}, name
        return found._key()

    return Reader(write, read)


def _lines_file(path: Path, lines: list[Any], text: str) -> Callable[[Random, Path], Path]:
    """A file with a JSON value in each line, of which a value, the text or bytes are damaged."""

    def write(rng: Random, mark: Path) -> Path:
        kind = 0.0 if rng is None else rng.random()
        if rng is None:
            path.write_text(text)
        elif kind < 0.01:
            damage.sparse(path)
        elif kind < 0.6:
            made = [*lines]
            at = rng.randrange(len(made))
            made[at] = damage.damaged_value(made[at], rng)
            path.write_text("".join(json.dumps(line) + "\n" for line in made))
        elif kind < 0.8:
            path.write_text(damage.damaged_text(text, rng), encoding="utf-8", errors="surrogatepass")
        else:
            path.write_bytes(damage.damaged_bytes(text.encode(), rng))
        return path

    return write


def _policy(folder: Path) -> Reader:
    path = folder / "pbt_policy_b.txt"
    configs = [{"hp": {"rate": 0.1 * n + 0.1, "holes": n}, "lr": 0.01 * n, "task": "x"} for n in range(6)]
    trials = ["e", "a", "d", "a", "c", "b"]  # each goes on from the one before
    lines = [
        [trials[n + 1], trials[n], 3 * n + 2, 3 * n + 3, configs[n], configs[n + 1]] for n in range(len(trials) - 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)

    return Reader(_lines_file(path, lines, text), lambda path: Schedule.from_pbt_policy(path)._key())


# Checkpoints ----------------------------------------------------------------------------------------------------------


def _checkpoint(folder: Path) -> Reader:
    path = folder / "state.pt"
    generator = torch.Generator().manual_seed(0)
    state = {"w": torch.randn(40, 3, generator=generator), "epoch": 3, "names": ["a", "b"], "opt": {"lr": 0.1}}
    save_state(state, path)

    def hostile(rng: Random, mark: Path) -> bytes:
        inner = rng.choice([damage.payload(mark), pickle.dumps({"format": 6}), b"", _pickle_of_bytearray(10**14)])
        return inner + hashlib.sha256(inner).digest()

    return Reader(_file(path, path.read_bytes(), hostile), lambda path: repr(load_state(path)), exact=True)


def _pickle_of_bytearray(size: int) -> bytes:
    return b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + size.to_bytes(8, "little") + b"\x85R."


# Studies --------------------------------------------------------------------------------------------------------------


def _line(trial: str, epoch: int, total: float, status: str = "running") -> dict[str, Any]:
    return {
        **{"trial_id": trial, "segment": "", "parent_trial_id": "", "status": status, "reason": ""},
        **{"hp/rate": 0.1 * epoch, "hp/holes": epoch, "scale/rate": 0.5, "scale/holes": 0.5},
        **{"train_loss": 1.0 / epoch, "val_loss": 1.5 / epoch, "test_loss": 1.6 / epoch},
        **{"val_accuracy": 0.5, "test_accuracy": 0.25, "epoch": epoch, "step": 8 * epoch},
        **{"cost": float(epoch), "cost_total": total, "device_time_s": 0.1, "wall_time_s": total},
    }


def _lines() -> list[dict[str, Any]]:
    copied = {"@event": "copied", "trial_id": "b", "segment": "1", "parent_trial_id": "a", "epoch": 2, "step": 16}
    copied |= {"checkpoint": None, "values": {"rate": 0.2, "holes": 2}, "sources": {"rate": "exploit"}}
    failed = {"trial_id": "c", "reason": "no luck", "lines": ["no luck"], "epoch": 1, "file": None}
    return [
        *(_line("a", 1, 1.0), _line("b", 1, 2.0), _line("a", 2, 3.0), copied),
        *(_line("b", 3, 4.0, "finished") | {"segment": "1", "parent_trial_id": "a"}, _line("c", 1, 5.0)),
        *({"@event": "restarted", **failed}, _line("c", 2, 6.0), {"@event": "failed", **failed}),
        *(_line("a", 3, 7.0), {"@event": "finished", "trial_id": "a"}),
    ]


RECORD = {
    **{"trials": 3, "cost_total": 7.0, "failures": {"c": "no luck"}, "hopeless": False, "peak_memory_bytes": 10**8},
    **{"followed": None, "startup_s": 0.5, "wall_time_s": 7.0, "device_time_s": 0.3, "slots": 1, "slots_in_use": 0.9},
}


def _described() -> dict[str, Any]:
    return {
        **{"schema_version": STUDY_SCHEMA_VERSION, "task": "toy", "task_given": "toy", "methods": ["pbt", "stn"]},
        **{"seeds": [0, 1], "budget": 9.0, "trials": None, "settings": {"epochs": 3, "lr": 0.1}, "slots_per_run": 1},
        **{"metrics": ["val_accuracy", "test_accuracy"], "hyperparameters": ["rate", "holes"]},
        **{"versions": {"torch": "2.13.0"}, "machine": {"cpus": 2}, "git_commit": None, "command": "tune-stn compare"},
        **{"method_settings": {}, "remarks": ["a remark"], "conversion": {}, "peak_memory_mib": {"pbt": 95}},
        "missing": [{"method": "stn", "seed": 1, "reason": "not begun", "no_result": True}],
        "failures": [{"method": "pbt", "seed": 0, "trial_id": "c", "reason": "no luck", "file": None}],
        "restarts": [{"method": "pbt", "seed": 0, "trial_id": "c", "reason": "no luck", "epoch": 1, "file": None}],
        "clocks": [
            {
                "method": "pbt",
                "seed": 0,
                "startup_s": 0.5,
                "wall_time_s": 7.0,
                "device_time_s": 0.3,
                "slots": 1,
                "slots_in_use": 0.9,
            }
        ],
    }


def _study_tables() -> dict[str, pd.DataFrame]:
    run = {"task": "toy", "method": "pbt", "seed": 0}
    reports = [
        run
        | {name: value for name, value in line.items() if not name.startswith("scale/")}
        | {"report_index": line["epoch"] - 1}
        for line in _lines()
        if "@event" not in line
    ]
    for line in reports:
        del line["segment"], line["reason"], line["parent_trial_id"]
    rows = []
    for trial, parent, steps in (("a", None, (0, 8, 16, 24)), ("b", "a", (0, 8, 16, 24))):
        for step in steps:
            for hp, value in (("rate", 0.1 + step / 100 + (trial == "b") / 7), ("holes", step // 8)):
                copied = parent is not None and step == 16
                rows.append(
                    run
                    | {"trial_id": trial, "parent_trial_id": parent if copied else None, "step": step}
                    | {"epoch": step // 8, "hp": hp, "value": float(value), "raw": None, "scale": None}
                    | {"source": "exploit" if copied else "explore"}
                )
    frame = pd.DataFrame(reports)
    return {"reports": frame, "schedule": pd.DataFrame(rows), "incumbent": best_so_far(frame)}


def _write_study(folder: Path) -> Mapping[str, Path]:
    """A study with its tables; gives the path of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = _study_tables()
    schemas = {
        "reports": reports_schema(["val_accuracy", "test_accuracy"], ["rate", "holes"]),
        "schedule": SCHEDULE_SCHEMA,
        "incumbent": INCUMBENT_SCHEMA,
    }
    for name, schema in schemas.items():
        write_table(tables[name], schema, folder / f"{name}.parquet")
    (folder / "study.json").write_text(json.dumps(_described(), indent=1))
    return {name: folder / f"{name}.parquet" for name in schemas} | {"study": folder / "study.json"}


def _looked_at(results: Results, folder: Path) -> str:
    """Everything that one does with a study, but for the pictures."""
    export_results(results, folder / "csv", "csv")
    page = tune_stn.study.report.write_report(results).read_text()
    words = repr(results), results._repr_html_(), summary(results), results.best().metrics, page
    return _digest(results.reports, results.schedule, results.incumbent, results.study, *words)


def _without_pictures() -> None:
    """Drawing takes a second a study, and what is drawn is looked at in other ways."""
    import tune_stn.study.plots

    def write(results: Results, folder: Path) -> list[Path]:
        tune_stn.study.plots._only_task(results)
        folder.mkdir(exist_ok=True)
        names = ("best_so_far_cost", "best_so_far_wall_time", "schedules", "final_values")
        for name in names:
            (folder / f"{name}.png").touch()
        return [folder / f"{name}.png" for name in names]

    tune_stn.study.plots.write_plots = write


def _tables(folder: Path) -> Reader:
    _without_pictures()
    files = _write_study(folder / "study")
    sound = {path: path.read_bytes() for name, path in files.items() if name != "study"}
    writes = {path: _file(path, content) for path, content in sound.items()}

    def write(rng: Random, mark: Path) -> Path:
        for path, content in sound.items():
            path.write_bytes(content)
        if rng is not None:
            writes[rng.choice([*sound])](rng, mark)
        return folder / "study"

    return Reader(write, lambda path: _looked_at(load_results(path), folder), exact=True)


def _json_file(path: Path, value: Any) -> Callable[[Random, Path], Path]:
    """A JSON file whose value, text or bytes are damaged."""
    text = json.dumps(value, indent=1)

    def write(rng: Random, mark: Path) -> Path:
        kind = 0.0 if rng is None else rng.random()
        if rng is None:
            path.write_text(text)
        elif kind < 0.01:
            damage.sparse(path)
        elif kind < 0.7:
            path.write_text(json.dumps(damage.damaged_value(value, rng)))
        elif kind < 0.72:
            path.write_text("[" * 100_000)
        else:
            path.write_bytes(damage.damaged_bytes(text.encode(), rng))
        return path

    return write


def _study_json(folder: Path) -> Reader:
    _without_pictures()
    files = _write_study(folder / "study")
    write = _json_file(files["study"], _described())
    return Reader(write, lambda path: _looked_at(load_results(path.parent), folder))


def _run_folder(folder: Path) -> Path:
    """The state folder of a run that has ended, in a study without tables."""
    study = folder / "study"
    run = state_folder(study, "pbt", 0)
    run.mkdir(parents=True)
    (study / "study.json").write_text(json.dumps(_described()))
    (run / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _lines()))
    write_table(_study_tables()["schedule"], SCHEDULE_SCHEMA, run / "schedule.parquet")
    write_done(run, RECORD, reports=7, schedule=16)
    return run


def _state(study: Path) -> str:
    tables, now = read_state(_described(), study)
    return _digest(*tables.values(), now)


def _done_json(folder: Path) -> Reader:
    run = _run_folder(folder)
    record = json.loads((run / "done.json").read_text())
    return Reader(_json_file(run / "done.json", record), lambda path: _state(path.parents[2]))


def _journal(folder: Path) -> Reader:
    run = _run_folder(folder)
    (run / "done.json").unlink()  # nobody has counted the lines
    path = run / "reports.jsonl"
    text = path.read_text()

    def read(path: Path) -> str:
        recorded = read_recorded(path)
        return _digest(report_rows(recorded, over=True), schedule_rows(recorded), _state(path.parents[2]))

    return Reader(_lines_file(path, _lines(), text), read)


def _searcher(folder: Path) -> Reader:
    space = {"task": "digits-mlp", "hp": {"rate": tune.uniform(0, 0.9), "decay": tune.loguniform(1e-5, 0.1)}}
    start = {"rate": 0.1, "decay": 1e-3}
    search = STNSearch(metric="val_loss", mode="min", seed=3, start=start)
    search.set_search_properties(None, None, {**space, "lr": tune.loguniform(1e-3, 1), "width": tune.choice([1, 2])})
    for number in range(3):
        config = search.suggest(f"t{number}")
        values = {f"hp/{name}": value for name, value in config["hp"].items()} | {"scale/rate": 0.5, "scale/decay": 0.5}
        search.on_trial_complete(f"t{number}", {"val_loss": 1.0 / (number + 1), **values})
    path = folder / "searcher.json"
    search.save(str(path))
    text = path.read_text()
    inner = _json_file(path, json.loads(text))

    def write(rng: Random, mark: Path) -> Path:
        if rng is None:
            path.write_text(text)
        elif rng.random() < 0.05:
            path.write_text(json.dumps(json.loads(text) | {"inner": base64.b64encode(damage.payload(mark)).decode()}))
        else:
            inner(rng, mark)
        return path

    def read(path: Path) -> str:
        found = STNSearch(metric="val_loss", mode="min", start=start)
        found.restore(str(path))
        found.suggest("next")
        return _digest(found._space, found._trials)

    return Reader(write, read)


# The command line -----------------------------------------------------------------------------------------------------

TEXTS = (
    *("", " ", "x", "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e300", "1e12", "1000000000", "9" * 5000, "null"),
    *("true", "[]", "[1", "{}", '{"a": 1}', '{"x": {"y": [1, 2]}}', "[[[]]]", '"text"', "=1+1", "../x", "a" * 300),
    *("%s", "{0}", "a=b", "\udcff", "é", "[" * 5000, '{"lr": "x"}', '{"momentum": 0.9}', "adam", "Adam", "1e-400"),
)
TASKS = ("digits-mlp", "ridge", "fashion-mnist-mlp", "cifar10-alexnet", "text-lstm", "text-transformer", "ptb-lstm")
STRANGE_TASKS = (
    *("os:system", "builtins:exit", "builtins:print", "sys:exit", "json:dumps", "numpy:zeros", "torch:compile", ":x"),
    *("x:", "math:pi", "this:d", "..x:y", "os:", "pathlib:Path", "builtins:object", "time:sleep", "x:y:z", "os.path:x"),
    *("functools:partial", "subprocess:run", "builtins:input", "a b:c", "é:é", "tune_stn:compare", "ray:init"),
)


def _command_line(folder: Path) -> Reader:
    os.chdir(folder)
    _without_pictures()
    _write_study(folder / "study")
    _schedule().to_parquet(folder / "schedule.parquet")
    runner = CliRunner()

    def started(*arguments: Any, **more: Any) -> None:
        return None

    tune_stn.study.compare.run_prepared = started  # type: ignore[assignment]
    tune_stn.cli._show = started
    names = {task: setting_names(task) for task in TASKS}
    compare = ["compare", "--task", "ridge", "--methods", "fixed,random", "--budget", "60", "--out", "out"]
    run = ["run", "--task", "ridge", "--algorithm", "fixed", "--out", "out"]
    others = [
        ["replay", "schedule.parquet", "--task", "digits-mlp", "--out", "out"],
        ["export", "study", "--to", "exported", "--format", "csv"],
        ["report", "study"],
    ]
    more = {
        "compare": [
            "--seeds",
            "--slots-per-run",
            "--cpus-per-trial",
            "--gpus-per-trial",
            "--resources",
            "--label",
            "--max-concurrent",
            "--working-dir",
        ],
        "run": ["--seed", "--trials", "--epochs", "--slots-per-run", "--max-concurrent"],
        "replay": ["--seed", "--epochs", "--trial"],
        "export": ["--method", "--seed", "--task"],
        "report": ["--every"],
    }

    def write(rng: Random, mark: Path) -> list[str]:
        if rng is None:
            return [*compare, "--no-rehearsal"]
        words = list(rng.choice([compare, compare, run, *others]))
        kind = rng.random()
        if kind < 0.45 and "--task" in words:
            task = rng.choice(TASKS)
            words[words.index("--task") + 1] = task
            key = rng.choice([*names[task], "x", ""])
            words += ["--set", rng.choice([f"{key}={rng.choice(TEXTS)}"] * 9 + [rng.choice(TEXTS)])]
        elif kind < 0.55 and "--task" in words:
            words[words.index("--task") + 1] = rng.choice(STRANGE_TASKS)
        elif kind < 0.75:
            words += [rng.choice(more[words[0]]), rng.choice(TEXTS)]
        elif kind < 0.8 and words[0] == "compare":
            words[4] = rng.choice(["grid", "tpe", "gp-bo", "pbt", "pb2", "asha", "hyperband", "auto", "stn-population"])
            words[6] = rng.choice(["1e12", "1e300", "100000", "1", "30"])
        else:
            at = rng.randrange(1, len(words))
            if words[at] not in ("--to", "exported"):
                words[at] = rng.choice(TEXTS)
        return [*words, *(["--no-rehearsal"] if words[0] in more and "--task" in words and rng.random() < 0.8 else [])]

    def read(words: list[str]) -> object:
        done = runner.invoke(tune_stn.cli.main, words)
        ray.shutdown()  # which `--task ray:init` has started, and a process of its own would end with
        lines = done.stderr.strip().splitlines()
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise Raw(f"{type(done.exception).__name__}: {done.exception}") from done.exception
        if done.exit_code == 2 and len(lines) == 1 and lines[0].startswith("tune-stn: "):
            raise Refused(lines[0])
        if done.exit_code not in (0, 1) or any("Traceback" in line for line in lines):
            raise Raw(f"exit code {done.exit_code}: {lines}")
        return done.exit_code

    return Reader(write, read)


READERS: Mapping[str, Callable[[Path], Reader]] = {
    "Fashion-MNIST, zipped": lambda folder: _fashion(folder, zipped=True),
    "Fashion-MNIST, unzipped": lambda folder: _fashion(folder, zipped=False),
    "CIFAR-10, binary": lambda folder: _cifar(folder, pickled=False),
    "CIFAR-10, Python": lambda folder: _cifar(folder, pickled=True),
    "Penn Treebank": _ptb,
    "text": _text,
    "Schedule.from_parquet": _schedule_parquet,
    "Schedule.from_frame": _schedule_frame,
    "Schedule.from_pbt_policy": _policy,
    "checkpoint": _checkpoint,
    "result tables": _tables,
    "study.json": _study_json,
    "done.json": _done_json,
    "journal": _journal,
    "searcher state": _searcher,
    "command line": _command_line,
}
