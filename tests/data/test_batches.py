"""Batches: their parts; those of indices: shapes, coverage, order from the generator alone."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_stn.data.batches import Batch, cycled_batches, epoch_batches, steps_per_epoch

sizes = st.integers(1, 40)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(n=sizes, batch_size=sizes)
def test_epoch_has_full_batches_of_distinct_examples(n: int, batch_size: int) -> None:
    batches = list(epoch_batches(n, batch_size, seeded(0)))
    assert len(batches) == steps_per_epoch(n, batch_size)
    assert {batch.shape for batch in batches} == {(min(n, batch_size),)}
    seen = torch.cat(batches)
    assert seen.dtype == torch.int64
    assert len(set(seen.tolist())) == len(seen) > n - batch_size
    assert 0 <= int(seen.min()) <= int(seen.max()) < n


def test_one_batch_of_all_when_there_are_fewer_than_a_batch() -> None:
    (batch,) = epoch_batches(3, 10, seeded(0))
    assert sorted(batch.tolist()) == [0, 1, 2]


def test_remainder_changes_from_pass_to_pass() -> None:
    generator = seeded(0)
    left_over = [
        frozenset(range(10)) - set(torch.cat(list(epoch_batches(10, 4, generator))).tolist()) for _ in range(20)
    ]
    assert len(set(left_over)) > 10


def test_order_comes_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = torch.cat(list(epoch_batches(50, 10, seeded(1))))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, torch.cat(list(epoch_batches(50, 10, seeded(1)))))
    assert not torch.equal(first, torch.cat(list(epoch_batches(50, 10, seeded(2)))))


def test_device_of_the_batches() -> None:
    """The permutation is drawn on the CPU and moved once: its batches share memory there."""
    batches = [*epoch_batches(7, 2, torch.Generator().manual_seed(0), device="meta")]
    assert [batch.device.type for batch in batches] == ["meta"] * 3
    first, second, _ = epoch_batches(7, 2, torch.Generator().manual_seed(0), device="cpu")
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert next(cycled_batches(7, 2, torch.Generator(), device="meta")).device.type == "meta"


def test_cycle_is_epochs_one_after_another() -> None:
    generator = seeded(3)
    epochs = [batch for _ in range(3) for batch in epoch_batches(10, 4, generator)]
    cycled = list(islice(cycled_batches(10, 4, seeded(3)), len(epochs)))
    assert torch.equal(torch.stack(cycled), torch.stack(epochs))


def test_cycle_resumes_from_the_state_before_a_pass() -> None:
    generator = seeded(4)
    batches = cycled_batches(10, 4, generator)
    list(islice(batches, 2))  # one whole pass
    state = generator.get_state()
    expected = list(islice(batches, 5))
    generator.set_state(state)
    resumed = list(islice(cycled_batches(10, 4, generator), 5))
    assert torch.equal(torch.stack(resumed), torch.stack(expected))


@pytest.mark.parametrize(("n", "batch_size"), [(0, 1), (1, 0), (-1, 2)])
def test_bad_sizes_are_refused_at_the_call(n: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        steps_per_epoch(n, batch_size)
    with pytest.raises(ValueError, match="at least 1"):
        epoch_batches(n, batch_size, seeded(0))
    with pytest.raises(ValueError, match="at least 1"):
        cycled_batches(n, batch_size, seeded(0))


@given(n=st.integers(1, 20), count=st.integers(1, 30))
def test_parts_are_the_batch_in_order_and_their_shares_are_one(n: int, count: int) -> None:
    batch = Batch(torch.arange(n)[:, None], torch.arange(n))
    parts, shares = zip(*batch.parts(count), strict=True)
    assert len(parts) <= count
    assert torch.cat([part.inputs for part in parts]).flatten().tolist() == list(range(n))
    assert [row for part in parts for row in range(n)[part.rows]] == list(range(n))
    assert sum(shares) == pytest.approx(1.0)
    assert [share * n for share in shares] == pytest.approx([len(part) for part in parts])


@pytest.mark.parametrize(("inputs", "targets"), [((2, 3), (3,)), ((0, 3), (0,)), ((), ())])
def test_a_batch_has_a_target_for_each_input(inputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"number of examples|at least one"):
        Batch(torch.zeros(inputs), torch.zeros(targets))
