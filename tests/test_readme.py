"""What the README shows, works: its Python blocks are run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune

from tune_stn import Schedule, get_task, load_results
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


@pytest.mark.slow
def test_the_language_model_carries_its_state_and_trains() -> None:
    names: dict[str, Any] = {}
    exec(compile(block("recurrent=True"), "README.md", "exec"), names)
    trainer = Trainer(get_task(names["task"], epochs=2, warmup_epochs=1, batch_size=40), algorithm="stn")
    first, second = (trainer.run_epoch() for _ in range(2))
    assert second["val_perplexity"] < first["val_perplexity"] < 500


def test_the_conversion_by_hand_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("print(net.conversion)"), "README.md", "exec"), {})
    assert "2: reads dropout" in capsys.readouterr().out


def test_the_loop_of_ones_own_tunes_and_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    code, names = block("tuner.train_step("), dict[str, Any]()
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 40
    assert names["net"].hyperparameters()["dropout"] > 0.3  # it overfits at .1
    ours = [line for line in code.splitlines() if "tuner" in line or "self_tuning" in line]
    assert len(ours) <= 6


# Lightning's advice about workers of loaders, and its own use of torch.
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
def test_lightning_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed: pip install 'tune_stn[lightning]'")
    monkeypatch.chdir(tmp_path)
    code, names = block("import lightning"), dict[str, Any]()
    torch.manual_seed(0)
    exec(compile(code.replace("max_epochs=40", "max_epochs=10"), "README.md", "exec"), names)
    assert names["module"].net.hyperparameters()["dropout"] != pytest.approx(0.1, abs=0.01)


@pytest.mark.slow
def test_the_trainer_of_transformers_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("transformers", "accelerate"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'tune_stn[transformers]'")
    monkeypatch.chdir(tmp_path)
    code, names = block("from transformers"), dict[str, Any]()
    torch.manual_seed(0)
    exec(compile(code.replace("report_to=[]", "report_to=[], dataloader_pin_memory=False"), "README.md", "exec"), names)
    assert names["net"].hyperparameters()["dropout"] != pytest.approx(0.1, abs=0.001)
    saved = tmp_path / "runs/bert/tuned"
    loaded, about = type(names["model"]).from_pretrained(saved, output_loading_info=True)
    assert not any(about.values())  # no weight is missing, and none is left over
    loaded.eval()
    tokens = names["tokens"][:2]
    torch.testing.assert_close(loaded(tokens).logits, names["net"].eval()(tokens).logits)


def test_the_tuner_can_be_made() -> None:
    names: dict[str, object] = {}
    exec(compile(block("tune.Tuner("), "README.md", "exec"), names)
    assert type(names["tuner"]).__name__ == "Tuner"


def test_the_loop_over_a_schedule_sets_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Schedule(("dropout",), np.array([0, 2]), np.array([[0.1], [0.4]]))
    (tmp_path / "runs/mine").mkdir(parents=True)
    written.to_parquet(tmp_path / "runs/mine/schedule.parquet")
    monkeypatch.chdir(tmp_path)
    model = SimpleNamespace(dropout=SimpleNamespace(p=0.0))
    names: dict[str, Any] = {"model": model}
    exec(compile(block("for step, hp in schedule"), "README.md", "exec"), names)
    assert names["schedule"] == written
    assert (names["step"], model.dropout.p) == (2, 0.4)


@pytest.mark.ray
def test_any_run_of_tune_is_recorded(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")

    def theirs(config: dict[str, float]) -> None:
        tune.report({"loss": config["lr"]})

    exec(compile(block("callbacks=[Recorder("), "README.md", "exec"), {"theirs": theirs})
    (row,) = load_results("runs/theirs").reports.to_dict("records")
    assert row["val_loss"] == row["hp/lr"]
