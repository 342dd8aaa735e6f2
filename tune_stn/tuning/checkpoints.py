"""The checkpoints of a trial, which lie beside each other on whatever storage Tune writes to."""

from __future__ import annotations

from pathlib import PurePosixPath

from pyarrow.fs import FileSelector, FileType
from ray import tune

from tune_stn.training.checkpoint import CheckpointError

PICKLED = "_dict_checkpoint.pkl"  # in which Tune keeps what `save_checkpoint` returned, if it returned a dictionary


def refuse_pickle(checkpoint: tune.Checkpoint) -> None:
    """Refuse a checkpoint that Tune would unpickle before a trainable of ours sees it, as none of ours is.

    Raises:
        CheckpointError: it is one.
    """
    path = f"{checkpoint.path}/{PICKLED}"
    if checkpoint.filesystem is not None and checkpoint.filesystem.get_file_info(path).type != FileType.NotFound:
        raise CheckpointError(f"{path} is a pickle, which can run any code; STNTrainable writes none: remove it")


def existing(checkpoint: tune.Checkpoint) -> tune.Checkpoint:
    """The checkpoint, or where it is gone, the newest that there is of its trial."""
    there = _siblings(checkpoint)
    if not there or PurePosixPath(checkpoint.path).name in there:
        return checkpoint
    return there[max(there)]


def older(checkpoint: tune.Checkpoint) -> list[tune.Checkpoint]:
    """Earlier ones of the same trial, the newest first."""
    there = _siblings(checkpoint)
    return [there[name] for name in sorted(there, reverse=True) if name < PurePosixPath(checkpoint.path).name]


def _siblings(checkpoint: tune.Checkpoint) -> dict[str, tune.Checkpoint]:
    """All of its trial, itself included, by the folder's name; Tune counts in it, six digits."""
    filesystem = checkpoint.filesystem
    if filesystem is None:
        return {}
    selector = FileSelector(PurePosixPath(checkpoint.path).parent.as_posix(), allow_not_found=True)
    return {
        found.base_name: tune.Checkpoint(found.path, filesystem)
        for found in filesystem.get_file_info(selector)
        if found.type == FileType.Directory and found.base_name.startswith("checkpoint_")
    }
