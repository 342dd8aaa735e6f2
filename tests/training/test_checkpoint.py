"""Checkpoint files: safe to load, whole or not at all, and honest about damage."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_stn.training import CheckpointError, Trainer, load_state, save_state
from tune_stn.training.checkpoint import FORMAT

STATE: dict[str, Any] = {"weights": torch.arange(200.0), "epoch": 3, "names": ["a", "b"], "reason": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state.pt"
    save_state(STATE, path)
    return path


def write_with_digest(path: Path, content: bytes) -> None:
    """What somebody could forge who knows the format."""
    path.write_bytes(content + hashlib.sha256(content).digest())


def torch_bytes(state: object) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_state_comes_back(path: Path) -> None:
    state = load_state(path)
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {"format": FORMAT, "epoch": 3, "names": ["a", "b"], "reason": None}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "truncated by half": lambda whole: whole[: len(whole) // 2],
    "truncated by a byte": lambda whole: whole[:-1],
    "without its digest": lambda whole: whole[:-32],
    "extended": lambda whole: whole + b"\0",
    "text": lambda whole: b"epoch 3\nloss 0.5\n",
    "zeros": lambda whole: bytes(len(whole)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_named_in_one_line(path: Path, damage: str) -> None:
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_is_found(path: Path) -> None:
    """In the weights too, where torch's own reader does not look."""
    whole = path.read_bytes()
    for position in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match="damaged"):
            load_state(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*gone\.pt"):
        load_state(tmp_path / "gone.pt")


def test_directory_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_state(tmp_path)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, writer: str) -> None:
    """Even with the right checksum and format."""
    path, mark = tmp_path / "state.pt", tmp_path / "executed"
    state = {"format": FORMAT, "weights": Malicious(mark)}
    write_with_digest(path, torch_bytes(state) if writer == "torch" else pickle.dumps(state, protocol=2))
    with pytest.raises(CheckpointError, match="damaged or no checkpoint of ours"):
        load_state(path)
    assert not mark.exists()
    torch.load(io.BytesIO(torch_bytes(state)), weights_only=False)
    assert mark.exists()  # the trap was live


@pytest.mark.parametrize("state", [{**STATE, "format": FORMAT + 1}, STATE, [1, 2]], ids=["newer", "none", "list"])
def test_another_format_is_refused(tmp_path: Path, state: object) -> None:
    path = tmp_path / "state.pt"
    write_with_digest(path, torch_bytes(state))
    with pytest.raises(CheckpointError, match=rf"state\.pt is not of format {FORMAT}"):
        load_state(path)


@pytest.mark.parametrize("interrupted", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr(f"tune_stn.files.os.{interrupted}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_state({**STATE, "epoch": 4}, path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    save_state({**STATE, "epoch": 5}, path)
    assert load_state(path)["epoch"] == 5
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_state_that_cannot_be_saved_leaves_the_old_file(path: Path) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_state({"function": lambda: None}, path)
    assert load_state(path)["epoch"] == 3


def test_a_trainers_state_is_plain_enough_to_load(make_task: Any, tmp_path: Path) -> None:
    trainer = Trainer(make_task(optimizer="Adam", lr_schedule="CosineAnnealingLR", lr_schedule_args={"T_max": 5}))
    trainer.run_epoch()
    save_state(trainer.state_dict(), tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt")["epoch"] == 1


MISMATCHES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "task": ({}, {"name": "other"}, "of task 'tiny', this run of 'other'"),
    "algorithm": ({}, {"algorithm": "delta-stn"}, "of algorithm 'stn', this run of 'delta-stn'"),
    "network": ({}, {"network": "cnn"}, "does not fit the model of 'tiny'"),
    "response": ({"response": "gate"}, {"response": 2}, "does not fit the model of 'tiny'"),
    "scales": ({"tune_scales": False}, {"tune_scales": True}, "does not fit the model of 'tiny'"),
    "lr schedule": (
        {},
        {"lr_schedule": "StepLR", "lr_schedule_args": {"step_size": 2}},
        "does not fit the model of 'tiny'",
    ),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_checkpoint_of_another_run_is_refused(make_task: Any, mismatch: str) -> None:
    of_file, of_run, words = MISMATCHES[mismatch]
    state = Trainer(make_task(**of_file)).state_dict()
    run = dict(of_run)
    trainer = Trainer(
        make_task(**{k: v for k, v in run.items() if k != "algorithm"}), algorithm=run.get("algorithm", "stn")
    )
    with pytest.raises(CheckpointError, match=words) as caught:
        trainer.load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_state_without_its_parts_is_refused(make_task: Any) -> None:
    trainer = Trainer(make_task())
    with pytest.raises(CheckpointError, match="does not fit"):
        trainer.load_state_dict({"task": "tiny", "algorithm": "stn"})
