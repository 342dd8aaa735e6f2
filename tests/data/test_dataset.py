"""Data sets and loaders of torch as splits: the batches are those of the same examples in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from tune_stn.data import Batch, DatasetSplit, Split, Splits

INPUTS, TARGETS = torch.randn(23, 4, generator=torch.Generator().manual_seed(0)), torch.arange(23)
PAIRS = TensorDataset(INPUTS, TARGETS)


class Named:
    """Examples as mappings, as Hugging Face has them; no data set of torch."""

    def __len__(self) -> int:
        return len(TARGETS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": INPUTS[index], "length": 3, "label": int(TARGETS[index])}


class Noisy(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(2), index


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(INPUTS, TARGETS, strict=True))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def passes(split: Any) -> list[Batch]:
    """A pass for training, more than one for hyper-steps, and one for evaluation."""
    cycle = split.cycle(5, generator())
    return [*split.batches(5, generator()), *(next(cycle) for _ in range(9)), *split.whole(5)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # of torch's loader, by fork
def test_batches_are_those_of_the_examples_in_memory(workers: int) -> None:
    given = Splits(PAIRS, DataLoader(PAIRS, batch_size=2, shuffle=True, num_workers=workers), Split(INPUTS, TARGETS))
    before = torch.get_rng_state()
    expected = passes(given.test)
    for split in (given.train, given.valid):
        assert (len(split), split.steps(5)) == (23, 4)
        found = passes(split)
        assert len(found) == len(expected) == 4 + 9 + 5
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)
    assert torch.equal(torch.get_rng_state(), before)


def test_examples_that_are_mappings_have_a_named_target() -> None:
    for batch, pair in zip(
        DatasetSplit(Named(), target="label").whole(5), Split(INPUTS, TARGETS).whole(5), strict=True
    ):
        assert set(batch.inputs) == {"x", "length"}
        assert torch.equal(batch.inputs["x"], pair.inputs)
        assert torch.equal(batch.targets, pair.targets)
        assert len(batch) == len(pair)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_a_data_set_draws_at_random_follows_from_the_seed() -> None:
    """In this process from its random state, in others from the run's generator; each pass draws anew."""
    split = DatasetSplit(Noisy(), workers=1)
    first, again = (
        [batch.inputs for _, batch in zip(range(4), split.cycle(3, generator()), strict=False)] for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[2])


def test_containers_of_tensors_go_in_parts() -> None:
    split = Split({"a": INPUTS, "b": (INPUTS.numpy(), TARGETS)}, [TARGETS, TARGETS + 1])
    batch = split.take(torch.tensor([4, 2, 9]))
    assert len(batch) == batch.weight() == 3
    first, second = (part for part, _ in batch.parts(2))
    assert torch.equal(first.inputs["b"][1], torch.tensor([4, 2]))
    assert torch.equal(second.targets[1], torch.tensor([10]))
    assert split.to("meta").take(torch.tensor([0])).device.type == "meta"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Splits(Stream(), PAIRS, PAIRS), "Stream is a stream: it has no order"),
        (lambda: Splits(PAIRS, DataLoader(Stream()), PAIRS), "Stream is a stream"),
        (
            lambda: Splits(PAIRS, PAIRS, DataLoader(PAIRS, batch_sampler=[[0, 1]])),
            "test: the DataLoader has a list, but",
        ),
        (lambda: Splits(PAIRS, PAIRS, DataLoader(PAIRS, sampler=WeightedRandomSampler([1.0] * 23, 9))), "test: the D"),
        (lambda: Splits(PAIRS, PAIRS, TensorDataset(INPUTS[:0])), "TensorDataset is empty"),
        (lambda: Splits(PAIRS, PAIRS, (INPUTS, TARGETS)), "test=tuple: give a Split"),
        (lambda: next(DatasetSplit(Named()).whole(5)), "has the keys 'x', 'length', 'label'.*target='label'"),
        (lambda: next(DatasetSplit(PAIRS, target="label").whole(5)), "has 2 parts: examples are mappings with 'label'"),
        (lambda: Split(INPUTS, [1] * 23), "targets of a split hold a int: give a tensor"),
        (lambda: Split(PAIRS, TARGETS), "hold a TensorDataset.*given to Splits itself"),
        (lambda: Split({"a": INPUTS, "b": INPUTS[:5]}, TARGETS), "do not hold the same number of examples"),
        (lambda: Split({}, TARGETS), "inputs are a dict without a tensor"),
    ],
)
def test_what_is_no_split_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mapping_of_data_sets_is_three_splits() -> None:
    """As a `DatasetDict` is one; it may have others."""
    for valid in ("validation", "valid"):
        splits = Splits.of({"train": Named(), valid: Named(), "test": Named(), "unlabelled": []}, target="label")
        for split in (splits.train, splits.valid, splits.test):
            assert isinstance(split, DatasetSplit)
            assert split.target == "label"
    with pytest.raises(ValueError, match=r"datasets have 'train', 'test', and no 'validation': .* take one apart"):
        Splits.of({"train": Named(), "test": Named()})
