"""Texts as splits: what is read, in which order, and how often."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_stn.data.batches import IGNORED, Batch
from tune_stn.data.text import Text, passages


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_is_ahead(batch: Batch) -> None:
    """In a text that counts up, a target is one more than its input."""
    counted = batch.targets != IGNORED
    assert torch.equal(batch.targets[counted], batch.inputs[counted] + 1)


sizes = {"n": st.integers(2, 200), "window": st.integers(1, 20), "batch_size": st.integers(1, 30)}


@given(**sizes, seed=st.integers(0, 10))
def test_a_pass_is_in_order_and_of_one_shape(n: int, window: int, batch_size: int, seed: int) -> None:
    text = Text(torch.arange(n), window)
    batches = list(text.batches(batch_size, seeded(seed)))
    assert len(batches) == text.steps(batch_size) >= 1
    assert len({batch.inputs.shape for batch in batches}) == 1
    rows, time = batches[0].inputs.shape
    assert (rows, time) == (min(batch_size, n - 1), min(window, (n - 1) // rows))
    for batch in batches:
        check_is_ahead(batch)
    columns = torch.cat([batch.inputs for batch in batches], 1)
    start = int(columns[0, 0])
    assert torch.equal(columns.flatten(), torch.arange(start, start + columns.numel()))
    assert n - 1 - columns.numel() < rows * (time if len(batches) > 1 or time == window else 1) + rows


@given(**sizes)
def test_whole_predicts_every_token_but_the_first_once(n: int, window: int, batch_size: int) -> None:
    text = Text(torch.arange(n), window)
    batches = list(text.whole(batch_size))
    for batch in batches:
        check_is_ahead(batch)
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert sorted(targets[targets != IGNORED].tolist()) == list(range(1, n))
    assert sum(batch.weight() for batch in batches) == n - 1 == len(text)


def test_what_is_left_over_is_elsewhere_in_another_pass() -> None:
    text = Text(torch.arange(40), 5)  # 39 to predict: 3 rows of 2 batches of 5, and 9 left over
    firsts = {int(next(text.batches(3, seeded(seed))).inputs[0, 0]) for seed in range(60)}
    assert firsts == set(range(10))


def test_cycles_begin_anywhere_and_go_through_the_text_again_and_again() -> None:
    text = Text(torch.arange(61), 5)  # 2 rows of 6 batches, nothing left over
    firsts = set()
    for seed in range(40):
        starts = [int(batch.inputs[0, 0]) for batch in islice(text.cycle(2, seeded(seed)), 14)]
        assert starts == [(starts[0] + 5 * k) % 30 for k in range(14)]
        firsts.add(starts[0])
    assert firsts == {0, 5, 10, 15, 20, 25}


def test_the_same_generator_gives_the_same_passes() -> None:
    text = Text(torch.arange(100), 7)
    first, second = ([batch.inputs.tolist() for batch in islice(text.cycle(3, seeded(5)), 20)] for _ in range(2))
    assert first == second


def test_batches_of_a_pass_share_a_carry_and_passes_do_not() -> None:
    text = Text(torch.arange(61), 5)
    carries = [batch.carry for batch in text.batches(2, seeded(0))]
    assert carries[0] is not None
    assert all(carry is carries[0] for carry in carries)
    assert next(text.batches(2, seeded(0))).carry is not carries[0]


def test_the_carry_steps_on_with_the_batches() -> None:
    seen = []
    cycle = Text(torch.arange(13), 3).cycle(2, seeded(1))  # two batches a pass
    for number, batch in enumerate(islice(cycle, 6)):
        assert batch.carry is not None
        before = batch.carry.before()
        seen.append((int(batch.inputs[0, 0]), None if before is None else int(before.flatten()[0])))
        batch.carry.leave(torch.full((1, 2, 1), number))
    begins = [before is None for _, before in seen]
    assert begins == [number == 0 or at == 0 for number, (at, _) in enumerate(seen)]  # anew at each end of the text
    assert all(before in (None, number - 1) for number, (_, before) in enumerate(seen))


def test_parts_of_a_batch_know_their_rows() -> None:
    batch = next(Text(torch.arange(61), 5).batches(6, seeded(0)))
    part = batch.part(2, 6).part(1, 3)
    assert part.carry is batch.carry
    assert part.rows == slice(3, 5)
    assert torch.equal(part.inputs, batch.inputs[3:5])
    assert batch.part(4, 9).rows == slice(4, 6)  # as many as there are


@pytest.mark.parametrize("n", [2, 9, 10, 11, 12])
def test_passages_hold_every_token_once(n: int) -> None:
    split = passages(torch.arange(n), 5)
    check_is_ahead(Batch(split.inputs, split.targets))
    assert split.inputs.shape == split.targets.shape == (-(-(n - 1) // 5), 5)
    assert sum(batch.weight() for batch in split.whole(2)) == n - 1
    if n > 5:
        whole = passages(torch.arange(n), 5, full=True)
        assert whole.targets.flatten().tolist() == list(range(1, (n - 1) // 5 * 5 + 1))


def test_a_text_without_one_full_passage_is_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens have no passage of 5"):
        passages(torch.arange(5), 5, full=True)


@pytest.mark.parametrize("tokens", [torch.arange(1), torch.zeros(4), torch.zeros(3, 3, dtype=torch.int64)])
def test_other_tokens_are_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="accepted are int64 of shape"):
        Text(tokens, 5)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="window=0"):
        Text(torch.arange(5), 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        Text(torch.arange(5), 1).steps(0)
