"""Examples in memory, and the three splits that a task trains, tunes and tests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from tune_stn.data.batches import (
    Batch,
    check_lengths,
    count_examples,
    cycled_batches,
    epoch_batches,
    steps_per_epoch,
    tensors_in,
)
from tune_stn.data.dataset import DatasetSplit
from tune_stn.nn.first_order import map_tensors
from tune_stn.nn.rows import take_rows


class Examples(Protocol):
    """What the training loop asks of a split."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...

    def steps(self, batch_size: int) -> int:
        """Batches in one pass of `batches`."""
        ...

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One pass for training, in batches of one shape; all randomness comes from the generator (on the CPU)."""
        ...

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """As `batches`, without end; for hyper-steps."""
        ...

    def whole(self, batch_size: int) -> Iterator[Batch]:
        """Everything once, in order, without a gradient; for evaluation."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """A data set of `n > 0` examples in memory, on one device.

    Attributes:
        inputs: The inputs as they are stored: a tensor or array of shape `(n, ...)`, or a dict, tuple or list of them.
            A dict whose keys are arguments of the network's `forward` is given by name, anything else as it is.
        targets: The targets, of shape `(n, ...)`, or a container of such.
        prepare: A function that makes the inputs of a batch from the stored ones, on their device; so images stay
            bytes, a quarter of the memory. None if there is nothing to be done.

    Raises:
        ValueError: Inputs or targets hold something else, there are no examples, or not as many targets as inputs.
    """

    inputs: Any
    targets: Any
    prepare: Callable[[Any], Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            object.__setattr__(self, name, _as_tensors(name, getattr(self, name)))
        check_lengths(self.inputs, self.targets)

    def __len__(self) -> int:
        return count_examples(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        inputs, targets = map_tensors(lambda tensor: tensor.to(device), (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)

    @property
    def _device(self) -> torch.device:
        return tensors_in(self.inputs)[0].device

    def take(self, indices: Tensor) -> Batch:
        """The batch of the examples at `indices`, an int64 tensor of shape `(m,)` on any device: a copy, prepared."""
        indices = indices.to(self._device)
        inputs = take_rows(self.inputs, indices)
        return Batch(inputs if self.prepare is None else self.prepare(inputs), take_rows(self.targets, indices))

    def steps(self, batch_size: int) -> int:
        return steps_per_epoch(len(self), batch_size)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        return map(self.take, epoch_batches(len(self), batch_size, generator, device=self._device))

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        return map(self.take, cycled_batches(len(self), batch_size, generator, device=self._device))

    def whole(self, batch_size: int) -> Iterator[Batch]:
        return map(self.take, torch.split(torch.arange(len(self), device=self._device), batch_size))


def _as_tensors(name: str, given: Any) -> Any:
    """Arrays as tensors that share their memory.

    Raises:
        ValueError: There is something that is neither.
    """

    def as_tensor(leaf: Any) -> Tensor:
        if isinstance(leaf, (Tensor, np.ndarray)):
            return torch.as_tensor(leaf)
        raise ValueError(
            f"{name} of a split hold a {type(leaf).__name__}: give a tensor, torch.as_tensor(...), or a dict or tuple "
            "of tensors; a Dataset or DataLoader of torch is given to Splits itself, in place of a split"
        )

    return tree_map(as_tensor, given)


@dataclass(frozen=True, eq=False)
class Splits:
    """Weights learn from `train`, hyperparameters and decisions from `valid`; `test` is only reported.

    Each is a `Split`, a `Text`, a `DatasetSplit`, or what one is made of: a map-style `Dataset` of torch, or a
    `DataLoader` of one, of which dataset, `collate_fn` and `num_workers` count; batches are those of the task.

    Raises:
        ValueError: One of them is nothing of these, or a stream, which has no length and no order to shuffle.
    """

    train: Examples
    valid: Examples
    test: Examples

    def __post_init__(self) -> None:
        for name, split in list(vars(self).items()):
            if isinstance(split, (Dataset, DataLoader)):
                object.__setattr__(self, name, DatasetSplit.of(split, name=name))
            elif not callable(getattr(split, "whole", None)):
                raise ValueError(
                    f"{name}={type(split).__name__}: give a Split(inputs, targets), a Text, or a Dataset or DataLoader"
                )

    @classmethod
    def of(cls, datasets: Mapping[str, Any], **settings: Any) -> Splits:
        """The splits of a mapping of data sets, as the `DatasetDict` of Hugging Face is.

        Args:
            datasets: Data sets by the names "train", "validation" or "valid", and "test"; others are left alone.
            settings: Those of each `DatasetSplit`: target, collate and workers.

        Raises:
            ValueError: One of the three is missing.
        """
        found = {}
        for split, names in {"train": ["train"], "valid": ["validation", "valid"], "test": ["test"]}.items():
            name = next((name for name in names if name in datasets), None)
            if name is None:
                raise ValueError(
                    f"datasets have {', '.join(map(repr, datasets)) or 'nothing'}, and no {names[0]!r}: where there "
                    "are fewer than three, take one apart, as train_test_split of Hugging Face does"
                )
            found[split] = DatasetSplit(datasets[name], **settings)
        return cls(**found)

    def to(self, device: torch.device | str) -> Splits:
        return Splits(self.train.to(device), self.valid.to(device), self.test.to(device))


def random_splits(inputs: Tensor, targets: Tensor, *, sizes: Sequence[int], seed: int) -> tuple[Split, ...]:
    """Disjoint random splits, one per size; what `sizes` leave over is in none of them.

    The draw depends on `seed` and the number of examples alone, never on the global random state, so that
    all methods compared at a seed see the same splits.

    Args:
        inputs: Inputs of all examples, shape `(n, ...)`.
        targets: Targets of all examples, shape `(n, ...)`.
        sizes: Number of examples in each split: `(train, valid)` beside an official test set, `(train, valid, test)`
            for `Splits(*random_splits(...))`.
        seed: Seed of a generator that this call makes for its draw.

    Raises:
        ValueError: a size below 1, or more examples asked for than there are.
    """
    check_lengths(inputs, targets)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes={tuple(sizes)}: each split needs at least one example")
    if sum(sizes) > len(inputs):
        raise ValueError(f"sizes={tuple(sizes)} ask for {sum(sizes)} examples, but there are {len(inputs)}")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).to(inputs.device)
    return tuple(Split(inputs[part], targets[part]) for part in torch.split(order[: sum(sizes)], list(sizes)))


def official_splits(
    training_set: Split,
    test_set: Split,
    *,
    train_images: int,
    valid_images: int,
    test_images: int,
    prepare: Callable[[Tensor], Tensor],
    seed: int,
) -> Splits:
    """Training and validation examples drawn from an official training set by `seed`, test examples in order.

    Args:
        training_set: The official training set.
        test_set: The official test set.
        train_images: Number of images in the training split.
        valid_images: Number of images in the validation split.
        test_images: Number of images in the test split, which are the first of the official ones.
        prepare: Function of the inputs that `Split.prepare` applies to the batches of all three splits.
        seed: Seed of the draw, as in `random_splits`.

    Raises:
        ValueError: there are fewer examples than asked for, or none of a split is.
    """
    if train_images + valid_images > len(training_set):
        raise ValueError(
            f"train_images={train_images}, valid_images={valid_images}: they ask for {train_images + valid_images} "
            f"examples, but there are {len(training_set)}"
        )
    train, valid = random_splits(
        training_set.inputs, training_set.targets, sizes=(train_images, valid_images), seed=seed
    )
    if not 1 <= test_images <= len(test_set):
        raise ValueError(f"test_images={test_images}: accepted is 1 to {len(test_set)}")
    test = Split(test_set.inputs[:test_images], test_set.targets[:test_images])
    return Splits(*(Split(split.inputs, split.targets, prepare=prepare) for split in (train, valid, test)))
