"""A trial's checkpoints on a storage that is not this machine's disk."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path

import pytest
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem
from ray import tune
from ray.tune.trainable.trainable import _DICT_CHECKPOINT_FILE_NAME

from tune_stn.training import CheckpointError
from tune_stn.tuning.checkpoints import PICKLED, existing, older
from tune_stn.tuning.trainable import STATE_FILE, STNTrainable

SMALL = {"task": "digits-mlp", "epochs": 5, "warmup_epochs": 0, "train_images": 100, "hidden": 16}


@pytest.fixture(params=["local", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    """A file system and a trial's folder on it; the bucket's files are copied before they can be read."""
    (tmp_path / "trial").mkdir()
    if request.param == "local":
        return LocalFileSystem(), str(tmp_path / "trial")
    return SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "trial"


def saved(storage: tuple[FileSystem, str], folder: Path, epochs: int) -> list[tune.Checkpoint]:
    """Checkpoints 0, 1, ... of a trial after 1, 2, ... epochs."""
    one = STNTrainable(SMALL)
    for number in range(epochs):
        one.step()
        target = folder / f"checkpoint_00000{number}"
        target.mkdir()
        one.save_checkpoint(str(target))
    return [tune.Checkpoint(f"{storage[1]}/checkpoint_00000{number}", storage[0]) for number in range(epochs)]


def names(checkpoints: list[tune.Checkpoint]) -> list[str]:
    return [checkpoint.path for checkpoint in checkpoints]


def test_which_there_are(storage: tuple[FileSystem, str], tmp_path: Path) -> None:
    filesystem, folder = storage
    for number in (2, 3, 10):
        (tmp_path / "trial" / f"checkpoint_{number:06}").mkdir()
    (tmp_path / "trial" / "checkpoint_000011").write_text("no folder")
    (tmp_path / "trial" / "other_000012").mkdir()
    there = [tune.Checkpoint(f"{folder}/checkpoint_{number:06}", filesystem) for number in (2, 3, 10)]
    assert existing(there[0]) is there[0]
    assert existing(tune.Checkpoint(f"{folder}/checkpoint_000001", filesystem)).path == there[2].path
    assert names(older(there[2])) == [there[1].path, there[0].path]
    assert older(there[0]) == []
    nowhere = tune.Checkpoint(f"{folder}/deeper/checkpoint_000001", filesystem)
    assert existing(nowhere) is nowhere
    assert older(nowhere) == []


def test_a_pickle_in_a_checkpoint_is_refused_before_tune_loads_it(
    storage: tuple[FileSystem, str], tmp_path: Path
) -> None:
    """Tune would unpickle such a file, where there is one, in place of what the trainable has written."""
    assert PICKLED == _DICT_CHECKPOINT_FILE_NAME
    [checkpoint] = saved(storage, tmp_path / "trial", 1)
    again = STNTrainable(SMALL)
    again.restore(checkpoint)
    (tmp_path / "trial" / "checkpoint_000000" / PICKLED).write_bytes(pickle.dumps(again.config))
    with pytest.raises(CheckpointError, match=r"_dict_checkpoint\.pkl is a pickle, which can run any code"):
        again.restore(checkpoint)
    with pytest.raises(CheckpointError, match="is a pickle"):
        again.restore(str(tmp_path / "trial" / "checkpoint_000000"))


def test_a_damaged_one_is_replaced_by_the_one_before(
    storage: tuple[FileSystem, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not by what lies beside its copy: there, other trials on this machine have theirs."""
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    folder = tmp_path / "trial"
    checkpoints = saved(storage, folder, 3)
    shutil.copytree(folder / "checkpoint_000000", copies / "checkpoint_")
    (folder / "checkpoint_000002" / STATE_FILE).write_bytes(b"cut")
    again = STNTrainable(SMALL)
    with caplog.at_level(logging.WARNING):
        again.restore(checkpoints[2])
    assert again.trainer.epoch == 2
    assert f"going on from the older {checkpoints[1].path}" in caplog.text
    again.restore(checkpoints[0])
    assert again.trainer.epoch == 1


def test_one_that_is_gone_is_replaced_by_the_newest(storage: tuple[FileSystem, str], tmp_path: Path) -> None:
    checkpoints = saved(storage, tmp_path / "trial", 3)
    shutil.rmtree(tmp_path / "trial" / "checkpoint_000000")
    (tmp_path / "trial" / "checkpoint_000002" / STATE_FILE).unlink()  # the newest had not been written whole
    again = STNTrainable(SMALL)
    again.restore(checkpoints[0])
    assert again.trainer.epoch == 2
    (tmp_path / "trial" / "checkpoint_000001" / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        again.restore(checkpoints[0])
