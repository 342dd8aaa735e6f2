"""The package as a whole: quick to import, a core without Ray, imports that point downward."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tune_stn
from tune_stn import tuning

ROOT = Path(tune_stn.__file__).parent
LAYERS = (
    "lazy",
    "files",
    "checked",
    "space",
    "nn",
    "data",
    "tasks",
    "testing",
    "training",
    "integrations",
    "tuning",
    "methods",
    "study",
    "command_words",
    "cli",
    "__main__",
)
BINDING = (
    *("SearchSpace", "self_tuning", "Task", "get_task", "STNTrainable", "STNSearch", "STNScheduler", "ScheduleReplay"),
    *("Schedule", "Recorder", "compare", "load_results"),
)

WITHOUT_RAY = """
import sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name == "ray" or name.startswith("ray."):
            raise ImportError("Ray is absent")

sys.meta_path.insert(0, NoRay())
"""


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = python("import sys, tune_stn; print([n for n in ('ray', 'torch', 'pandas', 'numpy') if n in sys.modules])")
    assert heavy.strip() == "[]"


REFUSED = {  # each with what is not loaded before it is
    "compare --task ridge --methods random,nothing --budget 9 --out x": ["torch", "ray"],
    'run --task digits-mlp --algorithm stn --out x --set response={"99":"gate"}': ["ray"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "tasks", "methods", *REFUSED])
def test_the_command_line_answers_before_anything_heavy_is_loaded(command: str, tmp_path: Path) -> None:
    """A list within a second of CPU, a refusal well within five: `experiments/refusals.py` has a table of more."""
    code = f"""
import os, sys
from tune_stn.cli import main
os.chdir({str(tmp_path)!r})
try:
    main({command.split()!r})
except SystemExit as end:
    print("code", end.code, *[name for name in ("torch", "ray") if name in sys.modules])
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = python(code).splitlines()[-1].split()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    unloaded = REFUSED.get(command, ["torch", "ray"])
    assert words[:2] == ["code", "2" if command in REFUSED else "0"]
    assert not set(unloaded) & set(words[2:])
    assert spent < (1 if "torch" in unloaded else 5)


@pytest.mark.slow
def test_the_core_works_where_ray_is_absent_and_loads_no_compiler() -> None:
    out = python(
        WITHOUT_RAY
        + """
import tune_stn.data, tune_stn.nn, tune_stn.space, tune_stn.tasks, tune_stn.training
import torch
from tune_stn import SearchSpace, Uniform, get_task, self_tuning
from tune_stn.nn.first_order import first_order
from tune_stn.training import Trainer
trainer = Trainer(get_task("digits-mlp", train_images=100, warmup_epochs=0), algorithm="stn")
print(trainer.run_epoch()["epoch"])
trainer.load_state_dict(trainer.state_dict())
Trainer(get_task("digits-mlp", train_images=100), algorithm="delta-stn").run_epoch()
norm, inputs = torch.nn.BatchNorm1d(3), torch.randn(4, 3)
first_order(lambda: norm(torch.autograd.forward_ad.make_dual(inputs, inputs)))()
print("compiler", "torch._dynamo" in sys.modules, "sympy" in sys.modules)
try:
    SearchSpace({"a": Uniform(0, 1)}).to_tune()
except ImportError as error:
    print(error)
"""
    )
    assert out.splitlines() == [
        "1",
        "compiler False False",
        "converting Ray Tune domains needs Ray: pip install 'ray[tune]'",
    ]


def test_all_names_resolve_and_others_do_not() -> None:
    assert set(BINDING) <= set(tune_stn.__all__) <= set(dir(tune_stn))
    for name in tune_stn.__all__:
        assert getattr(tune_stn, name).__name__ == name
    assert set(tune_stn.__all__) == set(tune_stn._HOMES)
    with pytest.raises(AttributeError, match="'tune_stn' has no attribute 'nothing'"):
        tune_stn.nothing  # noqa: B018


def test_the_names_of_the_layer_of_ray_are_those_of_the_package() -> None:
    assert set(tuning.__all__) <= set(tune_stn.__all__)
    for name in tuning.__all__:
        assert getattr(tuning, name) is getattr(tune_stn, name)


def test_version_is_the_metadatas() -> None:
    from importlib import metadata

    assert metadata.version("tune_stn") == tune_stn.__version__ == "0.1.0"
    assert "__version__" in dir(tune_stn)
    assert "\nversion: 0.1.0\n" in (ROOT.parent / "CITATION.cff").read_text()


def test_the_package_is_run_as_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert subprocess.run([sys.executable, "-m", "tune_stn", "--version"], check=False, timeout=100).returncode == 0
    assert capfd.readouterr().out == "python -m tune_stn, version 0.1.0\n"


# Layers -------------------------------------------------------------------------------------------------------------


def layer_of(module: str) -> str:
    return module.split(".")[1]


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, bool]]:
    """Names of imported modules, relative ones made absolute, and whether Python reads them at once."""
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            whole = ".".join(part for part in (base, node.module or "") if part)
            found = [whole, *(f"{whole}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in found:
            yield name, id(node) not in lazy


def wrong_imports(module: str, source: str) -> list[str]:
    """What a module of the package may not import."""
    mine = LAYERS.index(layer_of(module))
    wrong = []
    for name, _ in imports(ast.parse(source), module.rpartition(".")[0]):
        top, _, rest = name.partition(".")
        if top == "tune_stn" and rest and (layer := rest.split(".")[0]) in LAYERS and LAYERS.index(layer) > mine:
            wrong.append(f"{module} imports {name}, which lies above it")
        if top == "ray" and mine < LAYERS.index("tuning") and module != "tune_stn.space.ray_domains":
            wrong.append(f"{module} imports {name}")
    return wrong


MODULES = {
    ".".join(["tune_stn", *path.relative_to(ROOT).with_suffix("").parts]): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


@pytest.mark.slow
def test_imports_point_downward() -> None:
    assert {layer_of(module) for module in MODULES} == set(LAYERS)
    assert [wrong for module, path in MODULES.items() for wrong in wrong_imports(module, path.read_text())] == []


@pytest.mark.slow
def test_below_the_layers_of_ray_only_functions_import_the_file_that_needs_it() -> None:
    found = set()
    for module, path in MODULES.items():
        for name, at_once in imports(ast.parse(path.read_text()), module.rpartition(".")[0]):
            if name == "tune_stn.space.ray_domains" and LAYERS.index(layer_of(module)) < LAYERS.index("tuning"):
                found.add(module)
                assert not at_once, module
    assert found == {"tune_stn.space.search_space"}


@pytest.mark.slow
def test_libraries_that_only_some_methods_need_are_imported_by_files_of_methods_alone() -> None:
    """Which are loaded when a run is planned."""
    late = {"tune_stn.methods.optuna": "optuna", "tune_stn.methods.pb2": "sklearn"}
    for module, path in MODULES.items():
        for name, at_once in imports(ast.parse(path.read_text()), module.rpartition(".")[0]):
            heavy = name.startswith(("optuna", "sklearn", "scipy.stats"))
            assert not (heavy and at_once) or name.startswith(late.get(module, module)), f"{module} imports {name}"


@pytest.mark.parametrize(
    "source",
    [
        "import tune_stn.training.trainer",
        "from tune_stn.training import Trainer",
        "from tune_stn import training",
        "from ..training import trainer",
        "def f():\n    from tune_stn.study.compare import compare",
        "import ray",
        "from ray.tune import uniform",
    ],
)
def test_the_check_finds_what_it_looks_for(source: str) -> None:
    assert wrong_imports("tune_stn.tasks.mine", source) != []
    assert wrong_imports("tune_stn.cli", source) == []
