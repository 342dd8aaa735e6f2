"""What the README shows, works: its Python blocks are run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tune_stn import get_task
from tune_stn.training import Trainer

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)


def block(mark: str) -> str:
    """The one Python block that contains `mark`."""
    (found,) = [text for text in BLOCKS if mark in text]
    return found


def test_the_own_model_is_about_twenty_lines_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_task.py").write_text(block("# my_task.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    trainer = Trainer(get_task("my_task:task", epochs=4, warmup_epochs=1), algorithm="stn")
    losses = [trainer.run_epoch()["val_loss"] for _ in range(4)]
    assert losses[-1] < losses[0]
    code = [
        line for line in block("# my_task.py").splitlines() if line and not line.startswith(("#", "import", "from"))
    ]
    assert len(code) <= 20


def test_the_conversion_by_hand_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("print(net.conversion)"), "README.md", "exec"), {})
    assert "2: reads dropout" in capsys.readouterr().out


def test_the_tuner_can_be_made() -> None:
    names: dict[str, object] = {}
    exec(compile(block("tune.Tuner("), "README.md", "exec"), names)
    assert type(names["tuner"]).__name__ == "Tuner"
