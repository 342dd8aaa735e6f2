"""Splits: lengths, disjointness, determinism."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_stn.data.splits import Split, Splits, official_splits, random_splits


def examples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs whose first column names the example, and its number as the target."""
    numbers = torch.arange(n)
    return torch.stack([numbers, -numbers], dim=1).float(), numbers


def test_length_and_take_keep_pairs_together() -> None:
    split = Split(*examples(5))
    taken = split.take(torch.tensor([3, 0]))
    assert len(split) == 5
    assert taken.inputs.tolist() == [[3.0, -3.0], [0.0, -0.0]]
    assert taken.targets.tolist() == [3, 0]


def test_take_copies() -> None:
    split = Split(*examples(3))
    split.take(torch.tensor([0])).inputs.fill_(9.0)
    assert split.inputs[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("inputs", "targets"), [((2, 3), (3,)), ((0, 3), (0,)), ((), ()), ((1,), ())])
def test_unequal_or_empty_is_refused(inputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"number of examples|at least one"):
        Split(torch.zeros(inputs), torch.zeros(targets))


def test_to_moves_all_parts() -> None:
    split = Split(*examples(2))
    moved = Splits(split, split, split).to("meta")
    for part in (moved.train, moved.valid, moved.test):
        assert part.inputs.device.type == part.targets.device.type == "meta"


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    spare=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_splits_have_their_sizes_and_are_disjoint(sizes: list[int], spare: int, seed: int) -> None:
    splits = random_splits(*examples(sum(sizes) + spare), sizes=sizes, seed=seed)
    assert [len(split) for split in splits] == sizes
    drawn = torch.cat([split.targets for split in splits])
    assert len(set(drawn.tolist())) == sum(sizes)
    for split in splits:
        assert torch.equal(split.inputs[:, 0].long(), split.targets)


def test_seed_decides_and_the_global_state_does_not() -> None:
    inputs, targets = examples(100)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = random_splits(inputs, targets, sizes=(60, 40), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = random_splits(inputs, targets, sizes=(60, 40), seed=1)
    other = random_splits(inputs, targets, sizes=(60, 40), seed=2)
    assert torch.equal(first[0].targets, again[0].targets)
    assert torch.equal(first[1].targets, again[1].targets)
    assert not torch.equal(first[0].targets, other[0].targets)


@pytest.mark.parametrize("sizes", [(8, 3), (11,), (5, 0), (5, -1), ()])
def test_impossible_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sizes"):
        random_splits(*examples(10), sizes=sizes, seed=0)


def test_official_splits_draw_from_the_training_set_and_take_test_examples_in_order() -> None:
    official, test_set = Split(*examples(20)), Split(*examples(6))
    sizes = {"train_images": 8, "valid_images": 5, "seed": 3}
    splits = official_splits(official, test_set, **sizes, test_images=4, prepare=torch.neg)
    (train,), (valid,), (test,) = (split.whole(20) for split in (splits.train, splits.valid, splits.test))
    again = random_splits(official.inputs, official.targets, sizes=(8, 5), seed=3)
    assert torch.equal(train.inputs, -again[0].inputs)
    assert torch.equal(valid.targets, again[1].targets)
    assert torch.equal(test.inputs, -test_set.inputs[:4])
    for test_images in (0, 7):
        with pytest.raises(ValueError, match=rf"test_images={test_images}: accepted is 1 to 6"):
            official_splits(official, test_set, **sizes, test_images=test_images, prepare=torch.neg)


def test_batches_are_prepared_and_what_is_stored_is_not() -> None:
    """Once: a batch and its parts are not prepared again."""
    inputs = torch.arange(6, dtype=torch.uint8)
    split = Split(inputs, torch.arange(6), prepare=lambda stored: stored.float() / 2).to("cpu")
    for batch in (*split.batches(3, torch.Generator()), next(split.cycle(3, torch.Generator())), *split.whole(4)):
        assert torch.equal(batch.inputs, batch.targets / 2)
        assert torch.equal(batch.part(1, 2).inputs, batch.inputs[1:2])
    assert split.inputs.dtype == torch.uint8
