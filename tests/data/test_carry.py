"""The state of a recurrent network between batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from tune_stn.data.carry import Carry


def state(rows: int, value: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of one layer of an LSTM with two units."""
    hidden = torch.full((1, rows, 2), value) + torch.arange(rows).view(1, -1, 1)
    return [(hidden, -hidden)]


def test_nothing_is_before_the_first_batch() -> None:
    assert Carry().before() is None


def test_what_was_left_is_before_the_next_batch_only() -> None:
    carry = Carry()
    carry.leave(state(3, 5.0))
    assert carry.before() is None
    carry.step()
    ((hidden, cell),) = carry.before()
    assert torch.equal(hidden, state(3, 5.0)[0][0])
    assert torch.equal(cell, -hidden)
    carry.step()  # nothing was left
    assert carry.before() is None


def test_a_batch_may_be_run_again() -> None:
    carry = Carry()
    carry.leave(state(2, 1.0))
    carry.leave(state(2, 7.0))
    carry.step()
    assert float(carry.before()[0][0][0, 0, 0]) == 7.0


def test_the_graph_ends_between_batches() -> None:
    carry = Carry()
    carry.leave(torch.ones(1, 2, 3, requires_grad=True) * 2)
    carry.step()
    assert not carry.before().requires_grad


class Cell(NamedTuple):
    hidden: torch.Tensor
    cell: torch.Tensor


@pytest.mark.parametrize(
    "container", [lambda x: x, lambda x: [x], lambda x: (x, -x), lambda x: {"h": x}, lambda x: [Cell(x, -x)]]
)
def test_parts_of_a_batch_are_put_together_and_taken_apart(container: Any) -> None:
    whole = torch.randn(2, 5, 3)
    carry = Carry()
    carry.leave(container(whole[:, 3:]), slice(3, 6))  # in any order
    carry.leave(container(whole[:, :3]), slice(0, 3))
    carry.step()
    flat = {"x": carry.before(slice(1, 4)), "whole": carry.before()}
    expected = {"x": container(whole[:, 1:4]), "whole": container(whole)}
    torch.testing.assert_close(flat, expected, rtol=0, atol=0)


def test_another_kind_of_state_is_refused() -> None:
    with pytest.raises(TypeError, match="gave str as its state: accepted are tensors"):
        Carry().leave("state")
