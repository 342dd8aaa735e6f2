"""Examples of a map-style data set, which may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from tune_stn.data.batches import Batch, epoch_batches, steps_per_epoch
from tune_stn.nn.first_order import map_tensors


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """The examples of a data set that has a length and is indexed: of torch, of Hugging Face, or one of your own.

    Batches come through a `DataLoader` of torch, in an order that is that of a `Split` of as many examples.

    Attributes:
        dataset: The data set. Its examples are pairs (input, target), or mappings of which `target` names one entry.
        target: The key of the target in examples that are mappings, or None for pairs.
        collate: A function that makes a batch, a pair of inputs and targets or a mapping, from a list of examples.
            Default that of torch.
        workers: The number of processes that load; 0 for none. Default 0.
        device: Device of the batches. Default the CPU.

    Raises:
        ValueError: The data set is a stream, has no length, or is empty.
    """

    dataset: Any
    target: str | None = field(default=None, kw_only=True)
    collate: Callable[[list[Any]], Any] = field(default=default_collate, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    device: torch.device | str = field(default="cpu", kw_only=True)

    def __post_init__(self) -> None:
        kind = type(self.dataset).__name__
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__getitem__"):
            raise ValueError(
                f"dataset={kind} is a stream: it has no order to shuffle and no length to count epochs by; give a "
                "data set with __len__ and __getitem__"
            )
        if len(self) == 0:
            raise ValueError(f"dataset={kind} is empty: a split needs at least one example")

    @classmethod
    def of(cls, given: Any, *, name: str = "dataset") -> DatasetSplit:
        """What `Splits` makes of a data set or of a loader of one.

        Args:
            given: A `Dataset` or a `DataLoader` of torch.
            name: Name of the data set in errors. Default "dataset".

        Raises:
            ValueError: It is a stream, or the loader draws its batches by a rule of its own.
        """
        try:
            return cls._of(given)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @classmethod
    def _of(cls, given: Any) -> DatasetSplit:
        if not isinstance(given, DataLoader):
            return cls(given)
        rules = (given.sampler, given.batch_sampler)
        own = [rule for rule in rules if type(rule) not in (RandomSampler, SequentialSampler, BatchSampler, NoneType)]
        if own and not isinstance(given.dataset, IterableDataset):
            raise ValueError(
                f"the DataLoader has a {type(own[0]).__name__}, but the order of examples is that of "
                "the run's seed: give DatasetSplit(dataset, collate=...) if that order is right"
            )
        return cls(given.dataset, collate=given.collate_fn, workers=given.num_workers)

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device | str) -> DatasetSplit:
        return replace(self, device=device)

    def steps(self, batch_size: int) -> int:
        return steps_per_epoch(len(self), batch_size)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        return self._load(list(epoch_batches(len(self), batch_size, generator)), generator.initial_seed())

    def cycle(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        for done in count():
            order = list(epoch_batches(len(self), batch_size, generator))
            yield from self._load(order, generator.initial_seed() + done)

    def whole(self, batch_size: int) -> Iterator[Batch]:
        return self._load(list(torch.split(torch.arange(len(self)), batch_size)), 0)

    def _load(self, order: list[Tensor], seed: int) -> Iterator[Batch]:
        """Batches in an order; what the data set draws at random in other processes follows from the seed."""
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=[indices.tolist() for indices in order],
            collate_fn=self.collate,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(seed),
        )
        return map(self._batch, loader)

    def _batch(self, loaded: Any) -> Batch:
        if self.target is not None and isinstance(loaded, Mapping) and self.target in loaded:
            inputs: Any = {name: value for name, value in loaded.items() if name != self.target}
            targets = loaded[self.target]
        elif self.target is None and isinstance(loaded, (tuple, list)) and len(loaded) == 2:
            inputs, targets = loaded
        else:
            has = f"the keys {', '.join(map(repr, loaded))}" if isinstance(loaded, Mapping) else f"{len(loaded)} parts"
            wanted = "pairs (input, target)" if self.target is None else f"mappings with {self.target!r}"
            raise ValueError(
                f"a batch of {type(self.dataset).__name__} has {has}: examples are {wanted}; name the target of a "
                "mapping by DatasetSplit(dataset, target='label'), or give a collate that makes pairs"
            )
        return Batch(*map_tensors(lambda tensor: tensor.to(self.device), (inputs, targets)))
