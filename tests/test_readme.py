"""What README and documentation show, works: their Python blocks are run, and their commands and options exist.

The blocks of a page run in its order, in one namespace, in an empty folder. A page that needs something there, or must
do more than run, has a test of its own.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from ray import tune

from tune_stn import Schedule, get_task, load_results
from tune_stn.cli import main
from tune_stn.training import Trainer

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCKS = {page: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for page, text in PAGES.items()}
AS_THEY_STAND = (
    "README.md",
    "docs/explanation/controls.md",
    "docs/how-to/cluster.md",
    "docs/how-to/custom-layer.md",
    "docs/how-to/hyperparameters.md",
    "docs/how-to/model.md",
    "docs/how-to/own-method.md",
    "docs/how-to/ray-tune.md",
    "docs/how-to/task.md",
)
WITH_A_TEST = (
    "docs/how-to/frames.md",
    "docs/how-to/hugging-face.md",
    "docs/how-to/language-model.md",
    "docs/how-to/lightning.md",
    "docs/how-to/own-loop.md",
    "docs/how-to/recorder.md",
    "docs/how-to/replay.md",
    "docs/tutorial.md",
)
STUDY = ROOT / "experiments" / "results" / "regularisation_gain" / "fashion-mnist-cnn-cpu"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, and one of the Python path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def run(page: str, names: dict[str, Any] | None = None, **replaced: str) -> dict[str, Any]:
    """Run the blocks of a page; what they define. `replaced` is text of theirs in other words, to be quicker."""
    names = {} if names is None else names
    for code in BLOCKS[page]:
        for before, after in replaced.items():
            code = code.replace(before, after)
        if file := re.match(r"# (\w+\.py)\n", code):
            Path(file[1]).write_text(code)
        exec(compile(code, page, "exec"), names)
    return names


def test_every_page_with_an_example_is_tested() -> None:
    assert {page for page, blocks in BLOCKS.items() if blocks} == {*AS_THEY_STAND, *WITH_A_TEST}


@pytest.mark.parametrize("page", AS_THEY_STAND)
def test_the_examples_run(page: str, folder: Path) -> None:
    run(page)


def test_the_own_model_is_about_twenty_lines_and_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [code for code in BLOCKS["README.md"] if code.startswith("# my_task.py")]
    assert code in BLOCKS["docs/how-to/task.md"]
    (folder / "readme_task.py").write_text(code)
    trainer = Trainer(get_task("readme_task:task", epochs=4, warmup_epochs=1), algorithm="stn")
    losses = [trainer.run_epoch()["val_loss"] for _ in range(4)]
    assert losses[-1] < losses[0]
    lines = [line for line in code.splitlines() if line and not line.startswith(("#", "import", "from"))]
    assert len(lines) <= 20


def test_the_tutorial_runs_on_a_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "comparison"):
        shutil.copytree(STUDY, folder / "runs" / name)
    run("docs/tutorial.md")
    assert (folder / "incumbent.png").stat().st_size > 1000


def test_the_frames_of_a_study_are_there(folder: Path) -> None:
    shutil.copytree(STUDY, folder / "runs" / "fashion")
    assert len(run("docs/how-to/frames.md")["results"].reports)


@pytest.mark.slow
def test_the_language_model_carries_its_state_and_trains(folder: Path) -> None:
    names = run("docs/how-to/language-model.md")
    trainer = Trainer(get_task(names["task"], epochs=2, warmup_epochs=1, batch_size=40), algorithm="stn")
    first, second = (trainer.run_epoch() for _ in range(2))
    assert second["val_perplexity"] < first["val_perplexity"] < 500


def test_the_conversion_by_hand_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/how-to/task.md")
    assert "2: reads dropout" in capsys.readouterr().out


def test_the_loop_of_ones_own_tunes_and_is_short(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = BLOCKS["docs/how-to/own-loop.md"]
    names = run("docs/how-to/own-loop.md")
    assert len(capsys.readouterr().out.splitlines()) == 40
    assert names["net"].hyperparameters()["dropout"] > 0.3  # it overfits at .1
    ours = [line for line in code.splitlines() if "tuner" in line or "self_tuning" in line]
    assert len(ours) <= 6


# Lightning's advice about workers of loaders, and its own use of torch.
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.slow
def test_lightning_tunes(folder: Path) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed: pip install 'tune_stn[lightning]'")
    names = run("docs/how-to/lightning.md", **{"max_epochs=40": "max_epochs=10"})
    assert names["module"].net.hyperparameters()["dropout"] != pytest.approx(0.1, abs=0.01)


@pytest.mark.slow
def test_the_trainer_of_transformers_tunes(folder: Path) -> None:
    for needed in ("transformers", "accelerate"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'tune_stn[transformers]'")
    quieter = {"report_to=[]": "report_to=[], dataloader_pin_memory=False"}
    names = run("docs/how-to/hugging-face.md", **quieter)
    assert names["net"].hyperparameters()["dropout"] != pytest.approx(0.1, abs=0.001)
    saved = folder / "runs/bert/tuned"
    loaded, about = type(names["model"]).from_pretrained(saved, output_loading_info=True)
    assert not any(about.values())  # no weight is missing, and none is left over
    loaded.eval()
    tokens = names["tokens"][:2]
    torch.testing.assert_close(loaded(tokens).logits, names["net"].eval()(tokens).logits)


def test_the_loop_over_a_schedule_sets_its_values(folder: Path) -> None:
    written = Schedule(("dropout",), np.array([0, 2]), np.array([[0.1], [0.4]]))
    (folder / "runs/mine").mkdir(parents=True)
    written.to_parquet(folder / "runs/mine/schedule.parquet")
    model = SimpleNamespace(dropout=SimpleNamespace(p=0.0))
    names = run("docs/how-to/replay.md", {"model": model})
    assert names["schedule"] == written
    assert (names["step"], model.dropout.p) == (2, 0.4)


@pytest.mark.ray
def test_any_run_of_tune_is_recorded(cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")

    def theirs(config: dict[str, float]) -> None:
        tune.report({"loss": config["lr"]})

    run("docs/how-to/recorder.md", {"theirs": theirs})
    (row,) = load_results("runs/theirs").reports.to_dict("records")
    assert row["val_loss"] == row["hp/lr"]


def shown_commands() -> Iterator[tuple[str, str]]:
    """Page and line of each `tune-stn` command in a block of shell lines, continued lines joined."""
    for page, text in PAGES.items():
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("tune-stn "):
                    yield page, line


def test_the_commands_that_are_shown_exist() -> None:
    commands = list(shown_commands())
    assert len(commands) > 15
    for page, line in commands:
        _, name, *arguments = shlex.split(line, comments=True)
        command = main.commands[name]
        parser = command.make_parser(click.Context(command))
        try:
            parser.parse_args(arguments)
        except click.UsageError as error:
            pytest.fail(f"{page}: {line}\n{error.format_message()}")
